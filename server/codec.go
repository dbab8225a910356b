package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// jsonCodec is protobuf's JSON mapping. Unlike connect's own it refuses a field that it does not know, by name: a
// misspelt "contxt" that is taken silently is a record without its context.
type jsonCodec struct {
	// name is "json" or "json; charset=utf-8": connect has a codec for each.
	name   string
	server *Server
}

func (c jsonCodec) Name() string { return c.name }

func (c jsonCodec) Marshal(m any) ([]byte, error) {
	pm, ok := m.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is no protobuf message", m)
	}
	return protojson.Marshal(pm)
}

func (c jsonCodec) Unmarshal(data []byte, m any) error {
	pm, ok := m.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is no protobuf message", m)
	}
	defer c.server.decodeSlot(len(data))()
	if err := decodeJSON(data, pm); err != nil {
		return c.server.counted(err)
	}
	return nil
}

// protoCodec is the binary form.
type protoCodec struct {
	server *Server
}

func (c protoCodec) Name() string { return "proto" }

func (c protoCodec) Marshal(m any) ([]byte, error) {
	pm, ok := m.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is no protobuf message", m)
	}
	return proto.Marshal(pm)
}

func (c protoCodec) Unmarshal(data []byte, m any) error {
	pm, ok := m.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is no protobuf message", m)
	}
	defer c.server.decodeSlot(len(data))()
	if err := decodeProto(data, pm); err != nil {
		return c.server.counted(err)
	}
	return nil
}

// counted counts a refusal that connect is going to answer with.
func (s *Server) counted(r *refusal) *refusal {
	s.counters.add(r.kind, 1)
	return r
}

func decodeJSON(data []byte, m proto.Message) *refusal {
	if len(data) == 0 {
		return refusef(refusedDecode, connect.CodeInvalidArgument, "the body is empty: an empty message is {}")
	}
	// A brace in a string counts as well: no text that may be this long holds so many.
	if n := bytes.Count(data, []byte{'{'}); n > MaxObjects {
		return tooManyObjects(n)
	}
	err := protojson.Unmarshal(data, m)
	if err == nil {
		return nil
	}
	if json.Valid(data) && strings.Contains(err.Error(), "EOF") {
		// protojson takes half of a surrogate pair for the end of its input.
		return undecodable(m, `a string holds half of a surrogate pair (\ud800 to \udfff), which is no Unicode`)
	}
	return undecodable(m, err.Error())
}

func decodeProto(data []byte, m proto.Message) *refusal {
	if len(data) > MaxObjects { // an object takes two bytes
		if n := countObjects(m.ProtoReflect().Descriptor(), data); n > MaxObjects {
			return tooManyObjects(n)
		}
	}
	err := proto.Unmarshal(data, m)
	if err == nil {
		return nil
	}
	if field := notUTF8(m.ProtoReflect().Descriptor(), data); field != "" {
		return undecodable(m, field+" is no UTF-8")
	}
	return undecodable(m, err.Error())
}

func tooManyObjects(n int) *refusal {
	return refusef(refusedObjects, connect.CodeResourceExhausted, "the message holds %d objects, the limit is %d: split it", n, MaxObjects)
}

// countObjects counts the messages inside a message, at any depth, as far as data can be read.
func countObjects(d protoreflect.MessageDescriptor, data []byte) (n int) {
	for len(data) > 0 {
		field, content, rest := nextField(d, data)
		if field != nil && field.Kind() == protoreflect.MessageKind {
			n += 1 + countObjects(field.Message(), content)
		}
		data = rest
	}
	return n
}

// nextField takes one field off data: its descriptor, nil when the message has no such field of variable length, and its
// content. Nothing is left when data cannot be read.
func nextField(d protoreflect.MessageDescriptor, data []byte) (field protoreflect.FieldDescriptor, content, rest []byte) {
	number, kind, tagBytes := protowire.ConsumeTag(data)
	if tagBytes < 0 {
		return nil, nil, nil
	}
	valueBytes := protowire.ConsumeFieldValue(number, kind, data[tagBytes:])
	if valueBytes < 0 {
		return nil, nil, nil
	}
	rest = data[tagBytes+valueBytes:]
	if kind != protowire.BytesType {
		return nil, nil, rest
	}
	content, _ = protowire.ConsumeBytes(data[tagBytes : tagBytes+valueBytes])
	return d.Fields().ByNumber(number), content, rest
}

// maxReasonBytes bounds what a sentence repeats of a message.
const maxReasonBytes = 300

// undecodable puts protobuf's reason into a sentence. protobuf-go starts its messages with "proto:" and, at random, a space or
// U+00A0, so that nobody compares them.
func undecodable(m proto.Message, reason string) *refusal {
	reason = strings.TrimPrefix(strings.ReplaceAll(reason, "\u00a0", " "), "proto: ")
	if len(reason) > maxReasonBytes {
		reason = reason[:maxReasonBytes] + "..."
	}
	return refusef(refusedDecode, connect.CodeInvalidArgument, "the message is no %s: %s",
		m.ProtoReflect().Descriptor().Name(), strings.ToValidUTF8(reason, "?"))
}

// notUTF8 returns the path of the first string field in data that is no UTF-8, which proto.Unmarshal does not tell; empty =
// none was found.
func notUTF8(d protoreflect.MessageDescriptor, data []byte) string {
	for len(data) > 0 {
		field, content, rest := nextField(d, data)
		data = rest
		switch {
		case field == nil:
		case field.Kind() == protoreflect.StringKind && !utf8.Valid(content):
			return string(field.Name())
		case field.Kind() == protoreflect.MessageKind:
			if inner := notUTF8(field.Message(), content); inner != "" {
				return string(field.Name()) + "." + inner
			}
		}
	}
	return ""
}
