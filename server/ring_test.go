package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/prov4ml/agent/runs"
)

// ringWriter is a client's end of a ring.
type ringWriter struct {
	*ring
	fd     int
	number uint64
}

const ringText = `{"logFlopsPerBatch":{"synchronous":false,"context":"training","label":"a","count":{"forward":"6","method":"user"},`

func newRingWriter(t testing.TB, size int64, seals int) *ringWriter {
	t.Helper()
	fd, err := unix.MemfdCreate("ring", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Ftruncate(fd, size); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		t.Fatal(err)
	}
	w := &ringWriter{fd: fd}
	if size == ringBytes {
		if w.ring, err = openRing(dup(t, fd)); err != nil && seals&unix.F_SEAL_SHRINK != 0 {
			t.Fatal(err)
		}
		if w.ring != nil {
			t.Cleanup(w.close)
			w.text(0, ringText)
		}
	}
	return w
}

func dup(t testing.TB, fd int) int {
	t.Helper()
	other, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return other
}

func (w *ringWriter) text(offset int, text string) { copy(w.memory[ringTextsAt+offset:], text) }

// put writes a call as the Python client does.
func (w *ringWriter) put(place, step uint64) {
	w.number++
	at := uint64(ringSlotsAt + w.number%ringSlots*ringSlotBytes)
	made := w.number
	for i, n := range []uint64{place, step, made, place ^ step ^ made ^ w.number} {
		atomic.StoreUint64(w.at(at+8*uint64(i)), n)
	}
}

// leaveOut counts a call that is never written.
func (w *ringWriter) leaveOut() { w.number++ }

// open begins a stream that brings the ring.
func (w *ringWriter) open(t *testing.T, r *running) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	atomic.AddUint64(w.at(8), 1)
	if _, _, err := c.(*net.UnixConn).WriteMsgUnix([]byte(streamHead), unix.UnixRights(w.fd), nil); err != nil {
		t.Fatal(err)
	}
	tell(t, c, firstStep)
	return c
}

const streamHead = "POST /prov4ml.v1.AgentService/LogStream HTTP/1.1\r\nHost: agent\r\nContent-Type: application/connect+json\r\n" +
	"Connect-Protocol-Version: 1\r\nTransfer-Encoding: chunked\r\n\r\n"

// firstStep is that of each stream's first message, before which the ring is not read.
const firstStep = 100_000

func tell(t *testing.T, c net.Conn, step int) {
	t.Helper()
	message := fmt.Sprintf(`{"logSystemMetrics":{"step":%d}}`, step)
	if _, err := fmt.Fprintf(c, "%x\r\n\x00\x00\x00\x00%c%s\r\n", len(message)+5, len(message), message); err != nil {
		t.Fatal(err)
	}
}

// steps are those of all calls but the first messages.
func (r *running) steps() (steps []int64) {
	for _, l := range r.tracker.taken() {
		if *l.call.Step != firstStep {
			steps = append(steps, *l.call.Step)
		}
	}
	return steps
}

func wantSteps(t *testing.T, r *running, want ...int64) {
	t.Helper()
	if got := r.steps(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("steps %v, want %v", got, want)
	}
}

// Calls through the ring are measured without a message, in their order, and more of them than there are slots.
func TestRing(t *testing.T) {
	r := start(t, &fakeTracker{})
	w := newRingWriter(t, ringBytes, unix.F_SEAL_SHRINK)
	w.open(t, r)
	eventually(t, "the ring is taken", func() bool { return atomic.LoadUint64(w.at(16)) == 1 })
	for step := range uint64(2 * ringSlots) {
		for w.number-atomic.LoadUint64(w.at(0)) >= ringSlots {
			time.Sleep(time.Millisecond)
		}
		w.put(uint64(len(ringText)), step)
	}
	eventually(t, "all are measured", func() bool { return len(r.steps()) == 2*ringSlots })
	for i, l := range r.tracker.taken()[1:] {
		if *l.call.Step != int64(i) || *l.call.Context != "training" || l.call.Label != "a" || l.caller.PID != os.Getpid() {
			t.Fatalf("call %d: %+v", i, l)
		}
	}
	if n := r.counter(countRing); n != 2*ringSlots {
		t.Errorf("%d counted", n)
	}
}

// A call that is made after one in the ring is measured after it, whichever way it comes.
func TestRingIsReadBeforeALaterCall(t *testing.T) {
	r := start(t, &fakeTracker{})
	r.rings.mu.Lock()
	r.rings.shortest = time.Hour // nobody else looks
	r.rings.mu.Unlock()
	w := newRingWriter(t, ringBytes, unix.F_SEAL_SHRINK)
	c := w.open(t, r)
	eventually(t, "the ring is taken", func() bool { return atomic.LoadUint64(w.at(16)) == 1 })
	eventually(t, "the ring is followed", func() bool {
		q := r.sequenceOf(os.Getpid())
		q.mu.Lock()
		defer q.mu.Unlock()
		return len(q.rings) == 1
	})
	eventually(t, "the stream has begun", func() bool { return len(r.tracker.taken()) == 1 })
	w.put(uint64(len(ringText)), 1)
	w.put(uint64(len(ringText)), 2)
	if a := r.post("LogSystemMetrics", `{"step":3}`); a.status != http.StatusOK {
		t.Fatal(a.raw)
	}
	wantSteps(t, r, 1, 2, 3)
	w.put(uint64(len(ringText)), 4)
	tell(t, c, 5)
	eventually(t, "the streamed call is measured", func() bool { return len(r.steps()) == 5 })
	wantSteps(t, r, 1, 2, 3, 4, 5)
}

// What is in the ring when the client ends, or the agent, is measured; and the next agent goes on after it.
func TestRingSurvives(t *testing.T) {
	w := newRingWriter(t, ringBytes, unix.F_SEAL_SHRINK)
	first := start(t, &fakeTracker{})
	c := w.open(t, first)
	eventually(t, "the ring is taken", func() bool { return atomic.LoadUint64(w.at(16)) == 1 })
	for step := range uint64(100) {
		w.put(uint64(len(ringText)), step)
	}
	_ = c.Close()
	eventually(t, "all are measured", func() bool { return len(first.steps()) == 100 })

	w.put(uint64(len(ringText)), 100)
	second := start(t, &fakeTracker{})
	w.open(t, second)
	eventually(t, "the rest is measured", func() bool { return len(second.steps()) == 1 })
	wantSteps(t, second, 100)
	w.put(uint64(len(ringText)), 101)
	if err := second.stopFn(); err != nil {
		t.Fatal(err)
	}
	wantSteps(t, second, 100, 101)
}

// Two streams of one client have the ring for a moment: no call is measured twice, none is lost.
func TestRingOfTwoStreams(t *testing.T) {
	r := start(t, &fakeTracker{})
	w := newRingWriter(t, ringBytes, unix.F_SEAL_SHRINK)
	step := uint64(0)
	for range 20 {
		c := w.open(t, r)
		for range 50 {
			w.put(uint64(len(ringText)), step)
			step++
		}
		_ = c.Close()
		w.put(uint64(len(ringText)), step)
		step++
	}
	w.open(t, r)
	eventually(t, "all are measured", func() bool { return len(r.steps()) >= int(step) })
	seen := map[int64]bool{}
	for _, s := range r.steps() {
		if seen[s] {
			t.Fatalf("step %d is measured twice", s)
		}
		seen[s] = true
	}
}

// A panic in the course of a message leaves the ring, the caller and the agent's end alone.
func TestPanicOnAStreamWithARing(t *testing.T) {
	r := start(t, &fakeTracker{waitFn: func(context.Context) error { panic("a fault of the store's") }})
	w := newRingWriter(t, ringBytes, unix.F_SEAL_SHRINK)
	c := w.open(t, r)
	for step := range maxPending {
		tell(t, c, step)
	}
	eventually(t, "it has panicked", func() bool { return r.counter(countPanics) > 0 })
	_ = c.Close()
	if err := r.stopFn(); err != nil {
		t.Fatal(err)
	}
}

// A call that was never written all through is left out after a while, those after it are not.
func TestRingWithAGap(t *testing.T) {
	r := start(t, &fakeTracker{})
	w := newRingWriter(t, ringBytes, unix.F_SEAL_SHRINK)
	w.open(t, r)
	w.put(uint64(len(ringText)), 1)
	w.leaveOut()
	w.leaveOut()
	w.put(uint64(len(ringText)), 3)
	eventually(t, "the call after the gap is measured", func() bool { return len(r.steps()) == 2 })
	wantSteps(t, r, 1, 3)
}

// Nonsense in the ring is refused call by call and told at the end, and disturbs nobody.
func TestNonsenseInTheRing(t *testing.T) {
	r := start(t, &fakeTracker{logFn: func(_ runs.Caller, call runs.Call) error {
		if call.Step != nil && *call.Step == 99 {
			panic("a fault of the tracker's")
		}
		return nil
	}})
	w := newRingWriter(t, ringBytes, unix.F_SEAL_SHRINK)
	c := w.open(t, r)
	w.text(1000, `{"logSystemMetrics":{`)
	good := uint64(len(ringText))
	for _, place := range []uint64{0, 1 << 63, 5<<32 | ringTextsBytes, ^uint64(0), 1000<<32 | 21, good} {
		w.put(place, 7)
	}
	w.put(good, 1<<63)
	w.put(good, 99)
	w.put(good, 8)
	eventually(t, "the good ones are measured", func() bool { return len(r.steps()) == 2 })
	wantSteps(t, r, 7, 8)
	if _, err := io.WriteString(c, "0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(answer), `"accepted":"3"`) || !strings.Contains(string(answer), `"refused":"7"`) {
		t.Errorf("answer %s", answer)
	}
}

// What is no ring is closed and counted, and the stream works without it.
func TestWhatIsNoRing(t *testing.T) {
	r := start(t, &fakeTracker{})
	for name, w := range map[string]*ringWriter{
		"another size": newRingWriter(t, 4096, unix.F_SEAL_SHRINK),
		"not sealed":   newRingWriter(t, ringBytes, 0),
	} {
		t.Run(name, func(t *testing.T) {
			before := r.counter(refusedRing)
			w.ring = &ring{memory: make([]byte, ringBytes)}
			w.open(t, r)
			eventually(t, "it is refused", func() bool { return r.counter(refusedRing) == before+1 })
		})
	}
	pipe, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	(&ringWriter{ring: &ring{memory: make([]byte, ringBytes)}, fd: int(pipe.Fd())}).open(t, r)
	eventually(t, "it is refused", func() bool { return r.counter(refusedRing) == 3 })
	if a := r.post("LogSystemMetrics", `{}`); a.status != http.StatusOK {
		t.Error(a.raw)
	}
}

// No memory that a client may share makes the agent fall or read beyond it.
func FuzzRing(f *testing.F) {
	f.Add(uint64(0), uint64(len(ringText)), uint64(1), uint64(5), ringText)
	f.Add(uint64(1<<63), uint64(1<<40|3), ^uint64(0), uint64(1), `{"logFlopsPerBatch":{`)
	f.Fuzz(func(t *testing.T, read, place, step, made uint64, text string) {
		r := &ring{memory: make([]byte, ringBytes)}
		atomic.StoreUint64(r.at(0), read)
		copy(r.memory[ringTextsAt:], text)
		at := ringSlotsAt + (read+1)%ringSlots*ringSlotBytes
		for i, n := range []uint64{place, step, made, place ^ step ^ made ^ (read + 1)} {
			atomic.StoreUint64(r.at(at+8*uint64(i)), n)
		}
		r.peek()
		batch, any, err := r.next()
		if any != (made > 0) {
			t.Fatalf("a call: %v", any)
		}
		if any && (batch == nil) == (err == nil) {
			t.Fatalf("%v and %v", batch, err)
		}
	})
}
