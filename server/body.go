package server

import (
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"io"

	"connectrpc.com/connect"
)

// maxDrainBytes is how much of a message over the limit is read and thrown away, so that the caller gets to read the
// refusal: a caller that is still writing when the connection closes sees only a broken pipe.
const maxDrainBytes = 16 << 20

func tooLarge(what string) *refusal {
	return refusef(refusedMessageBytes, connect.CodeResourceExhausted, "%s is larger than the limit of %d bytes (1 MiB): split it", what, MaxMessageBytes)
}

// plainBody is the body of a unary request without envelopes: one message of at most MaxMessageBytes.
type plainBody struct {
	io.ReadCloser
	server *Server
	left   int64
	failed error
}

func (b *plainBody) Read(p []byte) (int, error) {
	if b.failed != nil {
		return 0, b.failed
	}
	if len(p) == 0 {
		return 0, nil
	}
	// One byte more than is allowed tells a message at the limit from one over it.
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left+1)])
	if b.left -= int64(n); b.left < 0 {
		_, _ = io.CopyN(io.Discard, b.ReadCloser, maxDrainBytes)
		b.failed = b.server.answer(tooLarge("the message"))
		return 0, b.failed
	}
	return n, err
}

// envelopes is the body of a gRPC or a streamed Connect request: messages after a prefix of 5 bytes, flags and big-endian
// length. It takes out the messages over the limit, each of which is one failing Read between two messages; so the stream
// goes on after it.
type envelopes struct {
	io.ReadCloser
	server *Server
	prefix [5]byte
	// head is the part of the prefix that is still to be handed out; left the bytes of the payload that are still to come.
	head []byte
	left int64
}

func (b *envelopes) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(b.head) == 0 && b.left == 0 {
		if _, err := io.ReadFull(b.ReadCloser, b.prefix[:]); err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				b.server.counters.add(refusedFraming, 1)
			}
			return 0, err
		}
		size := int64(binary.BigEndian.Uint32(b.prefix[1:]))
		if size > MaxMessageBytes {
			if n, err := io.CopyN(io.Discard, b.ReadCloser, size); n < size {
				b.server.counters.add(refusedMessageBytes, 1)
				return 0, err
			}
			return 0, b.server.answer(tooLarge("a message"))
		}
		b.head, b.left = b.prefix[:], size
	}
	if len(b.head) > 0 {
		n := copy(p, b.head)
		b.head = b.head[n:]
		return n, nil
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if b.left > 0 && errors.Is(err, io.EOF) {
		b.server.counters.add(refusedFraming, 1)
	}
	return n, err
}

// gunzip is connect's Decompressor with a bound: a MiB of gzip holds up to a GiB.
type gunzip struct {
	gzip.Reader
	server *Server
	left   int64
}

func (g *gunzip) Reset(r io.Reader) error {
	g.left = MaxMessageBytes
	if err := g.Reader.Reset(r); err != nil {
		return g.fail(err)
	}
	return nil
}

func (g *gunzip) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := g.Reader.Read(p[:min(int64(len(p)), g.left+1)])
	if g.left -= int64(n); g.left < 0 {
		return 0, g.server.answer(tooLarge("the decompressed message"))
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return n, g.fail(err)
	}
	return n, err
}

func (g *gunzip) fail(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	return g.server.answer(refusef(refusedDecode, connect.CodeInvalidArgument, "the message is no gzip data: %s", err))
}
