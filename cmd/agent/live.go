package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/prov4ml/agent/record"
)

const (
	liveInterval  = time.Second
	plainInterval = time.Minute
)

// live shows what was recorded so far while CMD runs: on a terminal one line, kept at the bottom by a scroll region, so that the
// command's own output scrolls above it undisturbed; elsewhere a plain line a minute.
type live struct {
	out      *os.File
	terminal bool
	started  time.Time

	mu     sync.Mutex
	calls  int
	last   *record.LogCall
	height int

	stop chan struct{}
	done sync.WaitGroup
}

func newLive(out *os.File, plain bool) *live {
	l := &live{out: out, started: time.Now(), stop: make(chan struct{})}
	l.terminal = !plain && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(out.Fd()))
	return l
}

// saw notes a record; it is called for each of them and only keeps a pointer.
func (l *live) saw(rec *record.LogCall) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if rec.Function != record.Function_RUN_END {
		l.calls++
	}
	l.last = rec
}

func (l *live) start() {
	interval := plainInterval
	resized := make(chan os.Signal, 1)
	if l.terminal {
		interval = liveInterval
		signal.Notify(resized, syscall.SIGWINCH)
		l.reserve()
	}
	l.done.Go(func() {
		defer signal.Stop(resized)
		ticks := time.NewTicker(interval)
		defer ticks.Stop()
		for {
			select {
			case <-l.stop:
				l.release()
				return
			case <-resized:
				l.reserve()
			case <-ticks.C:
			}
			l.draw()
		}
	})
}

func (l *live) close() {
	close(l.stop)
	l.done.Wait()
}

// reserve leaves the bottom row to the status line (DECSTBM); the cursor stays above it.
func (l *live) reserve() {
	_, rows, err := term.GetSize(int(l.out.Fd()))
	if err != nil || rows < 3 {
		l.height = 0
		return
	}
	l.height = rows
	fmt.Fprintf(l.out, "\n\x1b7\x1b[1;%dr\x1b8\x1b[1A", rows-1)
}

func (l *live) release() {
	if l.terminal && l.height > 0 {
		fmt.Fprintf(l.out, "\x1b7\x1b[r\x1b[%d;1H\x1b[2K\x1b8", l.height)
	}
}

func (l *live) draw() {
	l.mu.Lock()
	text := statusText(time.Since(l.started), l.calls, l.last)
	l.mu.Unlock()
	if !l.terminal {
		fmt.Fprintln(l.out, text)
		return
	}
	width, rows, err := term.GetSize(int(l.out.Fd()))
	if err != nil || l.height == 0 {
		return
	}
	if rows != l.height {
		l.reserve()
	}
	if runes := []rune(text); len(runes) > width-1 && width > 1 {
		text = string(runes[:width-1])
	}
	fmt.Fprintf(l.out, "\x1b7\x1b[%d;1H\x1b[2K\x1b[7m%s\x1b[0m\x1b8", l.height, text)
}

// statusText is the status line: how long, how many calls, and the last window's main numbers.
func statusText(elapsed time.Duration, calls int, last *record.LogCall) string {
	var b strings.Builder
	fmt.Fprintf(&b, "prov4ml %s · %d calls", elapsed.Round(time.Second), calls)
	if last == nil {
		b.WriteString(" · no log call yet")
		return b.String()
	}
	if last.Context != nil {
		fmt.Fprintf(&b, " · %s", *last.Context)
	}
	if last.Step != nil {
		fmt.Fprintf(&b, " step %d", *last.Step)
	}
	for _, shown := range []struct{ name, label string }{
		{record.DiskReadBytes, "read"},
		{record.DiskWriteBytes, "written"},
		{record.MemoryRSSBytes, "RSS"},
	} {
		for _, reading := range last.Readings {
			if reading.Name == shown.name && reading.State == record.State_OK {
				fmt.Fprintf(&b, " · %s %s", shown.label, bytesText(reading.GetInteger()))
			}
		}
	}
	return b.String()
}

// bytesText writes a count of bytes with a binary unit.
func bytesText(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	value, unit := float64(n), 0
	for value >= 1024 && unit < len(units)-1 {
		value /= 1024
		unit++
	}
	if unit == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", value, units[unit])
}

// say prints a line of the agent's own, told apart from the command's output by its prefix.
func say(out io.Writer, format string, args ...any) {
	fmt.Fprintf(out, "prov4ml: "+format+"\n", args...)
}
