package server

import (
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"time"

	"connectrpc.com/connect"
)

// maxDrainBytes is how much of a message over the limit is read and thrown away, so that the caller gets to read the
// refusal: a caller that is still writing when the connection closes sees only a broken pipe.
const maxDrainBytes = 16 << 20

// Messages over largeBytes are read maxLargeReads at a time and decoded maxLargeDecodes at a time: a MiB of empty operators
// becomes some 80 MiB of structs, and every connection may send one.
const (
	largeBytes      = 16 << 10
	maxLargeReads   = 16
	maxLargeDecodes = 2
)

// slot is the right to have one large message in memory.
type slot struct {
	server *Server
	held   bool
}

// acquire waits for the right, at most bodyTimeout: whoever has it has no longer than that to send the rest.
func (l *slot) acquire() error {
	if l.held {
		return nil
	}
	select {
	case l.server.largeReads <- struct{}{}:
		l.held = true
		return nil
	default:
	}
	timeout := time.NewTimer(bodyTimeout)
	defer timeout.Stop()
	select {
	case l.server.largeReads <- struct{}{}:
		l.held = true
		return nil
	case <-timeout.C:
	case <-l.server.hard.Done():
	}
	return l.server.answer(refusef(refusedLarge, connect.CodeUnavailable, "the agent reads %d messages of more than %d bytes already: try again", maxLargeReads, largeBytes))
}

func (l *slot) release() {
	if l.held {
		l.held = false
		<-l.server.largeReads
	}
}

// decodeSlot bounds the decoding of large messages; the returned function ends it.
func (s *Server) decodeSlot(messageBytes int) (release func()) {
	if messageBytes <= largeBytes {
		return func() {}
	}
	s.largeDecodes <- struct{}{}
	return func() { <-s.largeDecodes }
}

func tooLarge(what string) *refusal {
	return refusef(refusedMessageBytes, connect.CodeResourceExhausted, "%s is larger than the limit of %d bytes (1 MiB): split it", what, MaxMessageBytes)
}

// plainBody is the body of a unary request without envelopes: one message of at most MaxMessageBytes.
type plainBody struct {
	io.ReadCloser
	slot
	left   int64
	failed error
}

func (s *Server) plainBody(body io.ReadCloser) *plainBody {
	return &plainBody{ReadCloser: body, slot: slot{server: s}, left: MaxMessageBytes}
}

func (b *plainBody) Read(p []byte) (int, error) {
	if b.failed != nil {
		return 0, b.failed
	}
	if len(p) == 0 {
		return 0, nil
	}
	if b.left < MaxMessageBytes-largeBytes {
		if b.failed = b.acquire(); b.failed != nil {
			return 0, b.failed
		}
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
	slot
	// extend gives a large message bodyTimeout to come, and settle says that it has come; nil where the whole request is bounded.
	extend, settle func()

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
		// The message before has been read, decoded and handled.
		if b.held {
			b.release()
			if b.settle != nil {
				b.settle()
			}
		}
		if _, err := io.ReadFull(b.ReadCloser, b.prefix[:]); err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				b.server.counters.add(refusedFraming, 1)
			}
			return 0, err
		}
		size := int64(binary.BigEndian.Uint32(b.prefix[1:]))
		if size > MaxMessageBytes {
			return 0, b.skip(size, b.server.answer(tooLarge("a message")))
		}
		if size > largeBytes {
			if b.extend != nil {
				b.extend()
			}
			if err := b.acquire(); err != nil {
				return 0, b.skip(size, err)
			}
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

// skip leaves out a message that is refused with err. When it does not come to its end, the stream does.
func (b *envelopes) skip(size int64, err error) error {
	if n, readErr := io.CopyN(io.Discard, b.ReadCloser, size); n < size {
		return readErr
	}
	if b.settle != nil {
		b.settle()
	}
	return err
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
