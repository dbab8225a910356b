package record

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// filled sets every field of a message, each text to text but the n-th, which becomes bad. It counts the texts.
type filled struct {
	bad string
	n   int
	at  int
}

func (f *filled) text() protoreflect.Value {
	f.at++
	if f.at == f.n {
		return protoreflect.ValueOfString(f.bad)
	}
	return protoreflect.ValueOfString("text")
}

func (f *filled) message(m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		switch {
		case field.IsMap():
			key := f.text()
			m.Mutable(field).Map().Set(key.MapKey(), f.text())
		case field.IsList():
			f.list(field, m.Mutable(field).List())
		case field.Kind() == protoreflect.MessageKind:
			f.message(m.Mutable(field).Message())
		default:
			m.Set(field, f.scalar(field))
		}
	}
}

func (f *filled) list(field protoreflect.FieldDescriptor, list protoreflect.List) {
	for range 2 {
		if field.Kind() == protoreflect.MessageKind {
			f.message(list.AppendMutable().Message())
		} else {
			list.Append(f.scalar(field))
		}
	}
}

func (f *filled) scalar(field protoreflect.FieldDescriptor) protoreflect.Value {
	switch field.Kind() {
	case protoreflect.StringKind:
		return f.text()
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(1.5)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(-7)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(-7)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(7)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(1 << 40)
	}
	panic("record has a field of a kind that this test does not know: " + string(field.FullName()))
}

// TestCheckTextSeesEveryText puts a bad text into each field in turn; proto.Marshal says which of them a record cannot hold.
func TestCheckTextSeesEveryText(t *testing.T) {
	var all filled
	all.message((&LogCall{}).ProtoReflect())
	if all.at < 40 {
		t.Fatalf("only %d texts in a record", all.at)
	}
	seen := 0
	for n := range all.at + 1 {
		r := &LogCall{}
		f := filled{bad: "\xff", n: n}
		f.message(r.ProtoReflect())
		_, want := proto.Marshal(r)
		if want != nil {
			seen++
		}
		if got := CheckText(r); (got == nil) != (want == nil) {
			t.Errorf("text %d: CheckText says %v, proto.Marshal %v", n, got, want)
		}
	}
	if seen < 40 {
		t.Errorf("only %d bad texts were put in", seen)
	}
}

// TestMarshalVTIsMarshal compares the two encodings of a record with every field set, and of an empty one.
func TestMarshalVTIsMarshal(t *testing.T) {
	full := &LogCall{}
	(&filled{}).message(full.ProtoReflect())
	for _, r := range []*LogCall{full, {}} {
		want, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := r.MarshalVT()
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("MarshalVT differs from proto.Marshal, error %v:\n%x\n%x", err, got, want)
		}
	}
}
