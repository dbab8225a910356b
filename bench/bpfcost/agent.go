package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// agent is a `serve` with everything of its own: state, socket, and a bpf file system to pin in, as a node's agent does.
type agent struct {
	command           *exec.Cmd
	directory, socket string
	log               bytes.Buffer
	pinned            bool
}

// patience bounds every wait for the agent.
const patience = 30 * time.Second

// startAgent starts one that writes its spans into a file; with an environment, one that does what that says.
func startAgent(binary, work string, environment ...string) (_ *agent, err error) {
	directory, err := os.MkdirTemp(work, "agent-")
	if err != nil {
		return nil, fmt.Errorf("make the agent's directory: %w", err)
	}
	a := &agent{directory: directory, socket: filepath.Join(directory, "socket")}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.stop())
		}
	}()
	pins := filepath.Join(directory, "bpf")
	if err := os.Mkdir(pins, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory for pins: %w", err)
	}
	if err := unix.Mount("bpf", pins, "bpf", 0, ""); err != nil {
		return nil, fmt.Errorf("mount a bpf file system: %w", err)
	}
	a.pinned = true
	a.command = exec.Command(binary, "serve", "--socket", a.socket, "--state", filepath.Join(directory, "state"),
		"--pin-dir", filepath.Join(pins, "prov4ml"))
	if environment == nil {
		a.command.Args = append(a.command.Args, "--out", filepath.Join(directory, "out"))
	}
	a.command.Env = append(os.Environ(), environment...)
	a.command.Stderr = &a.log
	a.command.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := a.command.Start(); err != nil {
		a.command = nil
		return nil, fmt.Errorf("start the agent: %w", err)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if err := newCaller(a.socket).call("GetStatus", "{}"); err == nil {
			return a, nil
		} else if time.Now().After(deadline) {
			return nil, fmt.Errorf("the agent does not answer: %w: %s", err, a.log.String())
		}
	}
}

// stop ends it, and its counting, which would go on in the pins. It returns when the programs are gone from the kernel.
func (a *agent) stop() error {
	var programs []program
	var err error
	if a.command != nil {
		programs, err = a.programs()
		err = errors.Join(err, a.command.Process.Signal(unix.SIGTERM))
		if ended := a.command.Wait(); ended != nil {
			err = errors.Join(err, fmt.Errorf("the agent: %w: %s", ended, a.log.String()))
		}
		a.command = nil
	}
	if a.pinned {
		if e := unix.Unmount(filepath.Join(a.directory, "bpf"), unix.MNT_DETACH); e != nil {
			err = errors.Join(err, fmt.Errorf("unmount the pins: %w", e))
		}
		a.pinned = false
	}
	return errors.Join(err, awaitGone(programs), os.RemoveAll(a.directory))
}

// cpu is the CPU time of all its threads.
func (a *agent) cpu() (time.Duration, error) {
	// As CPUCLOCK_SCHED of MAKE_PROCESS_CPUCLOCK in include/linux/posix-timers_types.h; not in clock ticks as /proc/PID/stat.
	clock := int32(^a.command.Process.Pid<<3 | 2)
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		return 0, fmt.Errorf("read the agent's CPU time: %w", err)
	}
	return time.Duration(t.Nano()), nil
}

// anonymousBytes is its RssAnon.
func (a *agent) anonymousBytes() (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.command.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("read the agent's memory: %w", err)
	}
	for line := range bytes.Lines(status) {
		if fields := bytes.Fields(line); len(fields) == 3 && string(fields[0]) == "RssAnon:" {
			kilobytes, err := strconv.ParseFloat(string(fields[1]), 64)
			return kilobytes * 1024, err
		}
	}
	return 0, errors.New("/proc/PID/status has no RssAnon")
}

// proveWatched says whether the log call's window is in the file of spans, measured by eBPF, with at least the bytes that the
// workload moved.
func (a *agent) proveWatched(workBytes float64) error {
	path := filepath.Join(a.directory, "out", "traces.jsonl")
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		values, err := readWindow(path)
		switch {
		case err != nil:
			return err
		case values != nil:
			source := values["prov4ml.source.disk"].String
			read, written := values["prov4ml.disk.read_bytes"].Int, values["prov4ml.io.write_bytes"].Int
			if source != "ebpf" || float64(max(read, written)) < workBytes {
				return fmt.Errorf("the window has %d bytes read from the disk and %d written, by %q; the workload moved %.0f", read, written, source, workBytes)
			}
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("the log call's span is not in %s", path)
		}
	}
}

type spanValue struct {
	String string `json:"stringValue"`
	Int    int64  `json:"intValue,string"`
}

// readWindow returns the attributes of the first log call of a file of spans; nil when there is none yet.
func readWindow(path string) (map[string]spanValue, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open spans: %w", err)
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var line struct {
			ResourceSpans []struct {
				ScopeSpans []struct {
					Spans []struct {
						Name       string
						Attributes []struct {
							Key   string
							Value spanValue
						}
					}
				}
			}
		}
		if json.Unmarshal(lines.Bytes(), &line) != nil {
			continue // a line that is being written
		}
		for _, resource := range line.ResourceSpans {
			for _, scope := range resource.ScopeSpans {
				for _, span := range scope.Spans {
					if span.Name != "log_system_metrics" {
						continue
					}
					values := map[string]spanValue{}
					for _, attribute := range span.Attributes {
						values[attribute.Key] = attribute.Value
					}
					return values, nil
				}
			}
		}
	}
	return nil, lines.Err()
}
