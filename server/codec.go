package server

import (
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
	err := proto.Unmarshal(data, m)
	if err == nil {
		return nil
	}
	if field := notUTF8(m.ProtoReflect().Descriptor(), data); field != "" {
		return undecodable(m, field+" is no UTF-8")
	}
	return undecodable(m, err.Error())
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
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return ""
		}
		data = data[n:]
		if n = protowire.ConsumeFieldValue(number, kind, data); n < 0 {
			return ""
		}
		value := data[:n]
		data = data[n:]
		field := d.Fields().ByNumber(number)
		if field == nil || kind != protowire.BytesType {
			continue
		}
		content, _ := protowire.ConsumeBytes(value)
		switch field.Kind() {
		case protoreflect.StringKind:
			if !utf8.Valid(content) {
				return string(field.Name())
			}
		case protoreflect.MessageKind:
			if inner := notUTF8(field.Message(), content); inner != "" {
				return string(field.Name()) + "." + inner
			}
		}
	}
	return ""
}
