package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
)

// ioCounters are what one source says about bytes of a device, cumulative.
type ioCounters struct {
	Read  int64 `json:"read"`
	Write int64 `json:"write"`
}

// procIO reads /proc/PID/io, with the children that the process has waited for.
func procIO(pid int) (ioCounters, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return ioCounters{}, fmt.Errorf("read the job's I/O counters: %w", err)
	}
	var c ioCounters
	for line := range bytes.Lines(text) {
		key, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte(": "))
		n, err := strconv.ParseInt(string(value), 10, 64)
		if err != nil {
			continue
		}
		switch string(key) {
		case "read_bytes":
			c.Read = n
		case "write_bytes":
			c.Write = n
		}
	}
	return c, nil
}

// psutilSample is what psutil says of a tree at one moment. The bytes are sums of each process's growth, so that a process that
// has gone takes nothing back.
type psutilSample struct {
	ioCounters
	RSS int64 `json:"rss"`
}

// psutilScript answers each line with a sample, as training scripts take it: the process and its children, recursively.
const psutilScript = `
import json, sys
import psutil
print(psutil.__version__, flush=True)
root = psutil.Process(int(sys.argv[1]))
seen, total = {}, {"read": 0, "write": 0, "rss": 0}
for _ in sys.stdin:
    total["rss"] = 0
    for p in [root] + root.children(recursive=True):
        try:
            io, key = p.io_counters(), (p.pid, p.create_time())
            before = seen.get(key, (0, 0))
            seen[key] = (io.read_bytes, io.write_bytes)
            total["read"] += io.read_bytes - before[0]
            total["write"] += io.write_bytes - before[1]
            total["rss"] += p.memory_info().rss
        except psutil.Error:
            pass
    print(json.dumps(total), flush=True)
`

// psutil is a Python beside the job that asks psutil when told to.
type psutil struct {
	version string
	cmd     *exec.Cmd
	ask     io.WriteCloser
	answers *bufio.Scanner
}

var errNoPsutil = errors.New("no Python with psutil")

// startPsutil starts the interpreter; errNoPsutil when it has no psutil or is not there.
func startPsutil(python string, pid int) (*psutil, error) {
	cmd := exec.Command(python, "-c", psutilScript, strconv.Itoa(pid))
	ask, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", python, err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", python, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoPsutil, err)
	}
	p := &psutil{cmd: cmd, ask: ask, answers: bufio.NewScanner(out)}
	if !p.answers.Scan() {
		return nil, errors.Join(errNoPsutil, p.close())
	}
	p.version = p.answers.Text()
	return p, nil
}

func (p *psutil) sample() (psutilSample, error) {
	var s psutilSample
	if _, err := io.WriteString(p.ask, "\n"); err != nil {
		return s, fmt.Errorf("ask psutil: %w", err)
	}
	if !p.answers.Scan() {
		return s, errors.New("ask psutil: no answer")
	}
	if err := json.Unmarshal(p.answers.Bytes(), &s); err != nil {
		return s, fmt.Errorf("ask psutil: %w", err)
	}
	return s, nil
}

func (p *psutil) close() error {
	_ = p.ask.Close()
	return p.cmd.Wait()
}
