package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// program is one of the agent's programs.
type program struct {
	id ebpf.ProgramID
	// event is its tracepoint; empty for what the agent runs itself.
	event string
	name  string
	runStatistics
}

// runStatistics is what the kernel keeps about a program while its statistics are on.
type runStatistics struct {
	nanos, events uint64
}

func (s runStatistics) since(earlier runStatistics) runStatistics {
	return runStatistics{s.nanos - earlier.nanos, s.events - earlier.events}
}

// counted is one program in one block.
type counted struct {
	event, name string
	runStatistics
	// empty is what a program that does nothing needed on the same event: the statistics' own clock.
	empty runStatistics
	// took is how long was counted.
	took time.Duration
}

// programs reads the agent's descriptors: fdinfo has a program's statistics, and a link's program and tracepoint.
func (a *agent) programs() ([]program, error) {
	directory := fmt.Sprintf("/proc/%d/fdinfo", a.command.Process.Pid)
	entries, err := os.ReadDir(directory)
	if err != nil {
		return nil, fmt.Errorf("list the agent's descriptors: %w", err)
	}
	var found []program
	events := map[ebpf.ProgramID]string{}
	for _, entry := range entries {
		text, err := os.ReadFile(filepath.Join(directory, entry.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // closed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("read the agent's descriptors: %w", err)
		}
		fields := parseFdinfo(text)
		id := ebpf.ProgramID(fields.number("prog_id"))
		switch {
		case fields["link_type"] == "raw_tracepoint":
			events[id] = fields["tp_name"]
		case fields["prog_type"] != "":
			found = append(found, program{id: id, runStatistics: runStatistics{fields.number("run_time_ns"), fields.number("run_cnt")}})
		}
	}
	for i := range found {
		p := &found[i]
		p.event = events[p.id]
		if p.name, err = programName(p.id); err != nil {
			return nil, err
		}
	}
	return found, nil
}

type fdinfo map[string]string

func parseFdinfo(text []byte) fdinfo {
	fields := fdinfo{}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), ":"); ok {
			fields[name] = strings.TrimSpace(value)
		}
	}
	return fields
}

// number is 0 when there is none.
func (f fdinfo) number(name string) uint64 {
	n, _ := strconv.ParseUint(f[name], 10, 64)
	return n
}

// programName has at most 15 letters: the kernel keeps no more.
func programName(id ebpf.ProgramID) (string, error) {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return "", fmt.Errorf("find program %d: %w", id, err)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return "", fmt.Errorf("describe program %d: %w", id, err)
	}
	return info.Name, nil
}

// awaitGone waits until the kernel has freed the programs, which it does some time after the last descriptor is closed.
func awaitGone(programs []program) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		left := ""
		for _, p := range programs {
			if still, err := ebpf.NewProgramFromID(p.id); err == nil {
				left = p.name
				still.Close()
			}
		}
		if left == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("program %s is still in the kernel", left)
		}
	}
}

// settle is for what starts and ends with a block, fio's processes above all: it is not counted.
const settle = 700 * time.Millisecond

// withStatistics counts in the middle of a workload.
func (a *agent) withStatistics(count time.Duration, work func(seconds float64) (answer, error)) (_ []counted, _ answer, err error) {
	statistics, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return nil, answer{}, fmt.Errorf("switch BPF statistics on: %w", err)
	}
	defer func() { err = errors.Join(err, statistics.Close()) }()
	present, err := a.programs()
	if err != nil {
		return nil, answer{}, err
	}
	empties, err := attachEmpty(present)
	defer func() { err = errors.Join(err, empties.Close()) }()
	if err != nil {
		return nil, answer{}, err
	}

	type outcome struct {
		answer
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		answer, err := work((settle + count + settle/2).Seconds())
		done <- outcome{answer, err}
	}()
	time.Sleep(settle)
	from := time.Now()
	before, emptyBefore, errBefore := a.readStatistics(empties)
	time.Sleep(count)
	took := time.Since(from)
	after, emptyAfter, errAfter := a.readStatistics(empties)
	worked := <-done
	if err := errors.Join(errBefore, errAfter, worked.err); err != nil {
		return nil, answer{}, err
	}
	var result []counted
	for _, p := range present {
		result = append(result, counted{
			event: p.event, name: p.name, took: took,
			runStatistics: after[p.id].since(before[p.id]),
			empty:         emptyAfter[p.event].since(emptyBefore[p.event]),
		})
	}
	return result, worked.answer, nil
}

func (a *agent) readStatistics(empties emptyPrograms) (map[ebpf.ProgramID]runStatistics, map[string]runStatistics, error) {
	programs, err := a.programs()
	if err != nil {
		return nil, nil, err
	}
	ours := map[ebpf.ProgramID]runStatistics{}
	for _, p := range programs {
		ours[p.id] = p.runStatistics
	}
	empty := map[string]runStatistics{}
	for event, p := range empties {
		s, err := p.program.Stats()
		if err != nil {
			return nil, nil, fmt.Errorf("read statistics of the empty program on %s: %w", event, err)
		}
		empty[event] = runStatistics{uint64(s.Runtime), s.RunCount}
	}
	return ours, empty, nil
}

// emptyPrograms are by event.
type emptyPrograms map[string]emptyProgram

type emptyProgram struct {
	program *ebpf.Program
	io.Closer
}

// attachEmpty puts a program that does nothing beside each of ours. What it has attached is returned with an error, too.
func attachEmpty(beside []program) (emptyPrograms, error) {
	empties := emptyPrograms{}
	for _, p := range beside {
		if p.event == "" || empties[p.event].program != nil {
			continue
		}
		loaded, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "empty", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: p.event, License: "GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
		})
		if err != nil {
			return empties, fmt.Errorf("load an empty program for %s: %w", p.event, err)
		}
		attached, err := link.AttachTracing(link.TracingOptions{Program: loaded, AttachType: ebpf.AttachTraceRawTp})
		if err != nil {
			return empties, errors.Join(fmt.Errorf("attach an empty program to %s: %w", p.event, err), loaded.Close())
		}
		empties[p.event] = emptyProgram{loaded, attached}
	}
	return empties, nil
}

// Close detaches all.
func (e emptyPrograms) Close() error {
	var err error
	for _, p := range e {
		err = errors.Join(err, p.Closer.Close(), p.program.Close())
	}
	return err
}
