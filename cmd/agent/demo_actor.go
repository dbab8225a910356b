package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// demoActorCommand is one process of the job that demo truth plays: this binary again, so that the demo needs nothing installed.
//
//	job DIR SOCKET        takes orders on standard input, a line each, and answers a line each
//	write PATH BYTES      writes and exits: its pages are still dirty then
//	write-sync PATH BYTES writes and calls fsync
//	write-direct PATH BYTES
//	parent WORDS...       becomes the parent of another actor and waits for it
//	orphan WORDS...       becomes the parent of another actor and exits before that one acts
//	orphaned WORDS...     acts once its parent has gone
//	hold BYTES            holds so much memory for a moment; prints what it and its parent held then
//	stranger PATH BYTES   writes, and calls sync for the whole machine
type demoActorCommand struct {
	Words []string `arg:"" passthrough:""`
}

const (
	demoChunk = 1 << 20
	// demoHold is how long the peak of memory lasts.
	demoHold = 200 * time.Millisecond
)

// Run acts.
func (c demoActorCommand) Run(s streams) error {
	given := trimSeparator(c.Words)
	words := append(slices.Clone(given), "", "", "") // so that each may be looked at
	switch verb, path := words[0], words[1]; verb {
	case "job":
		return playJob(s.out, path, words[2])
	case "write", "write-sync", "write-direct", "stranger":
		size, err := strconv.ParseInt(words[2], 10, 64)
		if err != nil {
			return fmt.Errorf("demo actor: bytes %q: %w", words[2], err)
		}
		if err := writeDemoFile(path, size, verb == "write-direct", verb == "write-sync"); err != nil {
			return err
		}
		if verb == "stranger" {
			unix.Sync()
		}
		return nil
	case "hold":
		size, err := strconv.ParseInt(path, 10, 64)
		if err != nil {
			return fmt.Errorf("demo actor: bytes %q: %w", path, err)
		}
		return holdMemory(s.out, size)
	case "parent":
		return runActor(nil, s.out, given[1:]...)
	case "orphan":
		return startOrphan(given[1:])
	case "orphaned":
		for os.Getppid() == demoParent() {
			time.Sleep(time.Millisecond)
		}
		return demoActorCommand{Words: given[1:]}.Run(s)
	default:
		return fmt.Errorf("demo actor: unknown verb %q", verb)
	}
}

// actor is this binary as another process of the demo.
func actor(words ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the agent's own binary: %w", err)
	}
	cmd := exec.Command(self, append([]string{"demo", "actor", "--"}, words...)...)
	cmd.Stderr = os.Stderr
	return cmd, nil
}

// runActor waits for the actor's end. It inherits tie, if there is one, as file descriptor 3.
func runActor(tie *os.File, out io.Writer, words ...string) error {
	cmd, err := actor(words...)
	if err != nil {
		return err
	}
	cmd.Stdout = out
	if tie != nil {
		cmd.ExtraFiles = []*os.File{tie}
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("demo actor %s: %w", words[0], err)
	}
	return nil
}

// demoParentVariable tells an orphan-to-be whose death to wait for.
const demoParentVariable = "PROV4ML_DEMO_PARENT"

func demoParent() int {
	pid, _ := strconv.Atoi(os.Getenv(demoParentVariable))
	return pid
}

// startOrphan starts an actor that acts when this process is gone. The orphan keeps file descriptor 3 open while it lives.
func startOrphan(words []string) error {
	cmd, err := actor(append([]string{"orphaned"}, words...)...)
	if err != nil {
		return err
	}
	cmd.Env = append(os.Environ(), demoParentVariable+"="+strconv.Itoa(os.Getpid()))
	cmd.ExtraFiles = []*os.File{os.NewFile(3, "tie")}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start an orphan: %w", err)
	}
	return cmd.Process.Release()
}

// writeDemoFile writes random bytes: a file system that compresses would write fewer of any others.
func writeDemoFile(path string, size int64, direct, sync bool) (err error) {
	flags := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if direct {
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return fmt.Errorf("make a file of the demo: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buffer, err := alignedMemory(demoChunk) // O_DIRECT wants whole blocks in memory too
	if err != nil {
		return err
	}
	noise := rand.NewChaCha8([32]byte{})
	for size > 0 {
		_, _ = noise.Read(buffer) // never fails
		n, err := f.Write(buffer[:min(size, demoChunk)])
		if err != nil {
			return fmt.Errorf("write a file of the demo: %w", err)
		}
		size -= int64(n)
	}
	if sync {
		if err := f.Sync(); err != nil {
			return fmt.Errorf("sync a file of the demo: %w", err)
		}
	}
	return nil
}

// alignedMemory is anonymous memory on page boundaries, outside Go's heap.
func alignedMemory(size int64) ([]byte, error) {
	memory, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("get %d bytes of memory: %w", size, err)
	}
	return memory, nil
}

// readDemoFile reads a file to its end, and returns how many bytes that were. With cold the page cache drops it first.
func readDemoFile(path string, cold bool) (read int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("open a file of the demo: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if cold {
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return 0, fmt.Errorf("drop a file of the demo from the page cache: %w", err)
		}
	}
	return io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, make([]byte, demoChunk))
}

// holdMemory prints what this process and its parent held together meanwhile, in bytes, by a walk over their pages.
func holdMemory(out io.Writer, size int64) error {
	memory, err := alignedMemory(size)
	if err != nil {
		return err
	}
	for i := 0; i < len(memory); i += os.Getpagesize() {
		memory[i] = 1
	}
	time.Sleep(demoHold)
	var held int64
	for _, pid := range []int{os.Getpid(), os.Getppid()} {
		resident, err := procKilobytes(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Rss:")
		if err != nil {
			return err
		}
		held += resident
	}
	if err := unix.Munmap(memory); err != nil {
		return fmt.Errorf("give memory back: %w", err)
	}
	_, err = fmt.Fprintln(out, held)
	return err
}

// procKilobytes reads a line "KEY N kB" of a file of /proc, in bytes.
func procKilobytes(path, key string) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == key {
			n, err := strconv.ParseInt(fields[1], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("%s has no line %s", path, key)
}

// The files of the demo's job in its directory.
const (
	demoChildFile, demoOrphanFile, demoGrandchildFile, demoDirectFile = "child", "orphan", "grandchild", "direct"
	demoStrangerFile                                                  = "stranger"
)

// playJob is the training process of the demo: it takes an order a line, carries it out, and answers a line.
func playJob(out io.Writer, dir, socket string) error {
	calls := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, "unix", socket)
		},
	}}
	defer calls.CloseIdleConnections()
	orders := bufio.NewScanner(os.Stdin)
	for orders.Scan() {
		answer, err := obey(calls, dir, strings.Fields(orders.Text()))
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(out, answer); err != nil {
			return err
		}
	}
	return orders.Err()
}

// obey carries out one order: "log STEP", "read cold|warm FILE", or an actor's words, whose first may be orphan.
func obey(calls *http.Client, dir string, order []string) (string, error) {
	switch {
	case len(order) == 0:
		return "done", nil
	case order[0] == "log":
		return "done", logStep(calls, order[1])
	case order[0] == "read":
		n, err := readDemoFile(filepath.Join(dir, order[2]), order[1] == "cold")
		return strconv.FormatInt(n, 10), err
	case order[0] == "orphan":
		return "done", awaitOrphan(order)
	default:
		var answer bytes.Buffer
		if err := runActor(nil, &answer, order...); err != nil {
			return "", err
		}
		if answer.Len() == 0 {
			return "done", nil
		}
		return strings.TrimSpace(answer.String()), nil
	}
}

// awaitOrphan returns when the orphan has ended: a pipe has no writer then.
func awaitOrphan(order []string) error {
	read, write, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	defer read.Close()
	err = runActor(write, nil, order...)
	if err := errors.Join(err, write.Close()); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, read)
	return err
}

// logStep is prov4ml.log_system_metrics(Context.TRAINING, step) as any program can call it.
func logStep(calls *http.Client, step string) error {
	body := fmt.Sprintf(`{"context":"TRAINING","step":%q}`, step)
	answer, err := calls.Post("http://agent/prov4ml.v1.AgentService/LogSystemMetrics", "application/json", strings.NewReader(body))
	if err != nil {
		return fmt.Errorf("log step %s: %w", step, err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, text)
	}
	if err != nil {
		return fmt.Errorf("log step %s: %w", step, err)
	}
	return nil
}
