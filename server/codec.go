package server

import (
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
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
	if err := decodeJSON(data, pm); err != nil {
		return c.server.answer(err)
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
	if err := decodeProto(data, pm); err != nil {
		return c.server.answer(err)
	}
	return nil
}

func decodeJSON(data []byte, m proto.Message) error {
	if len(data) == 0 {
		return refusef(refusedDecode, connect.CodeInvalidArgument, "the body is empty: an empty message is {}")
	}
	if err := protojson.Unmarshal(data, m); err != nil {
		return undecodable(m, err)
	}
	return nil
}

func decodeProto(data []byte, m proto.Message) error {
	if err := proto.Unmarshal(data, m); err != nil {
		return undecodable(m, err)
	}
	return nil
}

// undecodable puts protobuf's message into a sentence. protobuf-go starts its messages with "proto:" and, at random, a space
// or U+00A0, so that nobody compares them.
func undecodable(m proto.Message, err error) *refusal {
	text := strings.ReplaceAll(err.Error(), "\u00a0", " ")
	text = strings.TrimPrefix(text, "proto: ")
	return refusef(refusedDecode, connect.CodeInvalidArgument, "the message is no %s: %s", m.ProtoReflect().Descriptor().Name(), text)
}
