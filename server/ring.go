package server

import (
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"
	"unsafe"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	prov4mlv1 "github.com/prov4ml/agent/api/prov4ml/v1"
)

// A ring is memory that a client shares with the agent, for calls of log_flops_per_batch that nobody waits for. Telling another
// process something through a socket wakes it up, and between two steps of a training that is most of what such a call costs. What is
// in the ring survives the client, as what is in a socket does, and unlike that an agent that is killed before it has read it.
//
// The client makes it with memfd_create, sealed against changes of its size, and sends the descriptor (SCM_RIGHTS) with the first bytes
// of the connection that becomes its LogStream. Numbers are 64 bits, little endian:
//
//	0                 the number of the last call that the agent has read, written by the agent
//	8                 written by the client: which stream it has handed the ring to
//	16                the same, written by the agent when it has taken the ring
//	ringSlotsAt       slots of four numbers: text, step, monotonicNanos, check
//	ringTextsAt       texts
//
// Calls are numbered from 1, and call n is in slot n % ringSlots. A text is the beginning of a LogStreamRequest in JSON, as far as the
// comma before "step"; a slot names it by offset<<32 | length. The check is text ^ step ^ monotonicNanos ^ n, so that a slot of the
// round before, or one of which another processor sees a part, is no call yet.
const (
	ringVersion    = 1
	ringSlots      = 4096
	ringSlotBytes  = 32
	ringSlotsAt    = 4096
	ringTextsAt    = ringSlotsAt + ringSlots*ringSlotBytes
	ringTextsBytes = 64 << 10
	ringBytes      = ringTextsAt + ringTextsBytes
	// maxRingText bounds one text; it holds a label, a context and a signature.
	maxRingText = 8 << 10
)

// ring is one stream's view of a ring; it is read by one goroutine at a time. A client whose stream has ended hands the same ring to
// its next one, while the reader of the last may still be about: each call is claimed.
type ring struct {
	memory []byte
	// taken is the number of the stream that the client had handed the ring to.
	taken uint64
	// gap is since when a call is missing although a later one is there; zero = none is.
	gap time.Time
}

// ringGap is how long a call may be missing: the client's thread has been interrupted, perhaps for good, while it wrote.
const ringGap = time.Second

// openRing maps the ring behind a descriptor, which it closes.
func openRing(fd int) (*ring, error) {
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return nil, fmt.Errorf("stat ring: %w", err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG || stat.Size != ringBytes {
		return nil, fmt.Errorf("a ring is a file in memory of %d bytes, not of %d", ringBytes, stat.Size)
	}
	// Else the client could take pages away from under the agent.
	if seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); err != nil || seals&unix.F_SEAL_SHRINK == 0 {
		return nil, errors.New("a ring is sealed against shrinking (F_SEAL_SHRINK)")
	}
	memory, err := unix.Mmap(fd, 0, ringBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map ring: %w", err)
	}
	r := &ring{memory: memory}
	r.taken = atomic.LoadUint64(r.at(8))
	atomic.StoreUint64(r.at(16), r.taken)
	return r, nil
}

func (r *ring) close() { _ = unix.Munmap(r.memory) }

func (r *ring) at(offset uint64) *uint64 { return (*uint64)(unsafe.Pointer(&r.memory[offset])) }

// slot copies the numbers of a call; false when there is none yet.
func (r *ring) slot(number uint64) (text, step, monotonicNanos uint64, ok bool) {
	at := ringSlotsAt + number%ringSlots*ringSlotBytes
	text, step = atomic.LoadUint64(r.at(at)), atomic.LoadUint64(r.at(at+8))
	monotonicNanos = atomic.LoadUint64(r.at(at + 16))
	check := atomic.LoadUint64(r.at(at + 24))
	return text, step, monotonicNanos, check == text^step^monotonicNanos^number && monotonicNanos > 0
}

// claim takes the next call's number and its slot; false when there is none, or another reader has the ring.
func (r *ring) claim() (text, step, monotonicNanos uint64, ok bool) {
	for atomic.LoadUint64(r.at(16)) == r.taken {
		read := atomic.LoadUint64(r.at(0))
		number := read + 1
		text, step, monotonicNanos, ok = r.slot(number)
		if !ok {
			if number = r.afterGap(read); number == 0 {
				return 0, 0, 0, false
			}
			text, step, monotonicNanos, ok = r.slot(number)
		}
		if ok && atomic.CompareAndSwapUint64(r.at(0), read, number) {
			r.gap = time.Time{}
			return text, step, monotonicNanos, true
		}
	}
	return 0, 0, 0, false
}

// maxGap is how many calls in a row may be missing.
const maxGap = 256

// afterGap is the number of the first call after those that are missing for good; 0 = none is.
func (r *ring) afterGap(read uint64) uint64 {
	for number := read + 2; number < read+2+maxGap; number++ {
		if _, _, _, ok := r.slot(number); !ok {
			continue
		}
		if r.gap.IsZero() {
			r.gap = time.Now()
		}
		if time.Since(r.gap) > ringGap {
			return number
		}
		return 0
	}
	return 0
}

// next takes the next call out; false when there is none. A call that makes no sense is an error, and taken out all the same.
func (r *ring) next() (*prov4mlv1.LogFlopsPerBatchRequest, bool, error) {
	text, step, monotonicNanos, ok := r.claim()
	if !ok {
		return nil, false, nil
	}
	offset, length := text>>32, text&0xffffffff
	if length > maxRingText || offset > ringTextsBytes-length {
		return nil, true, invalidRing("a call in the ring has its text at %d, of %d bytes: a text has at most %d, all together %d",
			offset, length, maxRingText, ringTextsBytes)
	}
	// Its own bytes: the client may write while they are read.
	message := append([]byte(nil), r.memory[ringTextsAt+offset:ringTextsAt+offset+length]...)
	message = strconv.AppendUint(append(message, `"step":`...), step, 10)
	message = strconv.AppendUint(append(message, `,"monotonicNanos":`...), monotonicNanos, 10)
	message = append(message, "}}"...)
	request := new(prov4mlv1.LogStreamRequest)
	if refused := decodeJSON(message, request); refused != nil {
		return nil, true, refused
	}
	batch := request.GetLogFlopsPerBatch()
	if batch == nil {
		return nil, true, invalidRing("a call in the ring is no log_flops_per_batch")
	}
	return batch, true, nil
}

// peek says whether there is a call, or one after a missing one. It may be asked while another goroutine reads.
func (r *ring) peek() bool {
	read := atomic.LoadUint64(r.at(0))
	for number := read + 1; number <= read+3; number++ {
		if _, _, _, ok := r.slot(number); ok {
			return true
		}
	}
	return false
}

func invalidRing(format string, args ...any) *refusal {
	return refusef(refusedRing, connect.CodeInvalidArgument, format, args...)
}
