package runs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/prov4ml/agent/record"
)

const (
	// settleEvery is how often a run that waits for its end looks whether all is written.
	settleEvery = 20 * time.Millisecond
	// quiet is how long after its last call a process that has exited is taken to have nothing more in a socket's buffer.
	quiet = 100 * time.Millisecond
	// maxHold bounds how long an open connection keeps a run open after its process's end.
	maxHold = 10 * time.Second
)

// watch waits for the process's end, lets its tree settle, and closes its run. It is the only goroutine that does so for a
// process that is not being closed or replaced.
func (t *Tracker) watch(s *subject) {
	if !t.waitExit(s) {
		return
	}
	exited := time.Now()
	for !t.settled(s, time.Since(exited)) {
		select {
		case <-t.stop:
			return
		case <-time.After(settleEvery):
		}
	}
	t.finish(s)
}

// waitExit returns true when the process has exited, false when the tracker is closed first. Between, it closes the run of a
// process that has asked for it and goes on.
func (t *Tracker) waitExit(s *subject) bool {
	exit := make(chan struct{})
	file, err := pidfd(t.config.ProcRoot, s)
	switch {
	case errors.Is(err, ErrGone):
		return true
	case err == nil:
		done := make(chan struct{})
		go func() {
			defer close(done)
			if waitReadable(file) {
				close(exit)
			}
		}()
		defer func() {
			_ = file.Close() // wakes the waiter
			<-done
		}()
	}
	// Without a pidfd (no descriptor left) the process is looked at once a second.
	var poll <-chan time.Time
	if err != nil {
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		poll = ticker.C
	}
	for {
		var settle <-chan time.Time
		s.mu.Lock()
		if s.ending {
			settle = time.After(settleEvery)
		}
		finished := s.finished
		s.mu.Unlock()
		if finished {
			return false
		}
		select {
		case <-t.stop:
			return false
		case <-exit:
			return true
		case <-poll:
			if _, err := pinned(t.config.ProcRoot, s.key); errors.Is(err, ErrGone) {
				return true
			}
		case <-s.heard:
		case <-settle:
			s.mu.Lock()
			if s.ending && (time.Now().After(s.endBy) || t.pending(s) == 0) {
				t.endRun(s)
			}
			s.mu.Unlock()
		}
	}
}

// pidfd opens a descriptor that becomes readable when the process exits.
func pidfd(procRoot string, s *subject) (*os.File, error) {
	// PIDFD_NONBLOCK (5.10) lets the runtime's poller wait for it, without a thread of its own.
	fd, err := unix.PidfdOpen(s.key.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("open pidfd of pid %d: %w", s.key.PID, err)
	}
	// The pid may have been reused before it was opened, not since: this start time is that of the process behind the descriptor.
	if _, err := pinned(procRoot, s.key); errors.Is(err, ErrGone) {
		_ = unix.Close(fd)
		return nil, ErrGone
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// waitReadable returns true when file is readable, false when it is closed first.
func waitReadable(file *os.File) bool {
	raw, err := file.SyscallConn()
	if err != nil {
		return false
	}
	ready := false
	_ = raw.Read(func(fd uintptr) bool {
		set := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(set, 0)
		ready = err == nil && n > 0
		return ready
	})
	return ready
}

// settled says whether the run of a process that exited that long ago can be closed.
func (t *Tracker) settled(s *subject, since time.Duration) bool {
	if s.holds.Load() > 0 && since < maxHold {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished {
		return true
	}
	if last := s.called; !last.IsZero() && time.Since(last) < quiet {
		return false
	}
	return since >= t.config.Settle || t.pending(s) == 0 && s.now.gauges.Processes == 0
}

// pending reads how much of the tree's dirty page cache is still to be written; 0 also where that is not known. The caller holds
// s.mu.
func (t *Tracker) pending(s *subject) uint64 {
	t.measure(s, false)
	if !s.now.known || !measured(&s.snapshot, dirty) {
		return 0
	}
	return s.now.pending()
}

// requestEnd closes the run now, or lets the watcher do it when pages are still to be written. The caller holds s.mu.
func (t *Tracker) requestEnd(s *subject) {
	if !s.unfinished || s.ending {
		return
	}
	if t.config.Settle <= 0 || t.pending(s) == 0 {
		t.endRun(s)
		return
	}
	s.ending, s.endBy = true, time.Now().Add(t.config.Settle)
	select {
	case s.heard <- struct{}{}:
	default:
	}
}

// endRun emits RUN_END with the remainder and the totals. A process that has logged nothing since its last one emits nothing. The
// caller holds s.mu.
func (t *Tracker) endRun(s *subject) {
	s.ending = false
	if !s.unfinished {
		return
	}
	t.counters.runsEnded.Add(1)
	t.log(s, &Call{Function: record.Function_RUN_END})
}

// finish closes the run of a process that has exited and forgets the process.
func (t *Tracker) finish(s *subject) {
	t.making.Lock()
	defer t.making.Unlock()
	t.finishLocked(s)
}

// finishLocked is finish for a caller that holds making.
func (t *Tracker) finishLocked(s *subject) {
	s.mu.Lock()
	if s.finished {
		s.mu.Unlock()
		return
	}
	t.endRun(s)
	s.finished = true
	committed := s.committed
	s.mu.Unlock()
	if committed != nil && s.tree != nil && s.tree.set != 0 && !s.left {
		// The tree goes after its last record is safe: if the agent is killed in between, the next one writes the record. An error is
		// the store's to tell.
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, _ = committed(ctx)
		cancel()
	}
	select {
	case s.heard <- struct{}{}:
	default:
	}
	t.mu.Lock()
	if t.subjects[s.key.PID] == s {
		delete(t.subjects, s.key.PID)
	}
	t.mu.Unlock()
	t.giveUp(s)
}

// Close lets the trees settle as at a process's end, but not beyond ctx, ends every run, waits until all records are committed, and
// stops following. It is for an agent that will not be there for these processes again: the end of run.
func (t *Tracker) Close(ctx context.Context) error { return t.shut(ctx, true) }

// Detach ends the runs of processes that have exited and stops following the others, whose runs the next agent takes up from the
// store: the end of serve.
func (t *Tracker) Detach(ctx context.Context) error { return t.shut(ctx, false) }

func (t *Tracker) shut(ctx context.Context, all bool) error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	var subjects []*subject
	for _, s := range t.subjects {
		subjects = append(subjects, s)
	}
	t.mu.Unlock()
	close(t.stop)
	t.watchers.Wait()
	var errs []error
	started := time.Now()
	for _, s := range subjects {
		alive := true
		if stat, err := pinned(t.config.ProcRoot, s.key); err != nil || stat.Zombie() {
			alive = false
		}
		for (all || !alive) && ctx.Err() == nil && !t.settled(s, time.Since(started)) {
			time.Sleep(settleEvery)
		}
		s.mu.Lock()
		if s.ending {
			t.endRun(s)
		}
		if alive && !all {
			s.unfinished, s.left = false, true
		}
		s.mu.Unlock()
		t.finish(s)
		s.mu.Lock()
		wait := s.committed
		s.mu.Unlock()
		if wait != nil {
			if _, err := wait(context.WithoutCancel(ctx)); err != nil {
				errs = append(errs, fmt.Errorf("commit the last record of pid %d: %w", s.key.PID, err))
			}
		}
	}
	return errors.Join(errs...)
}
