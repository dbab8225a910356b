package host

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"github.com/prov4ml/agent/probes"
)

// errLine says that a file of procfs is not as expected.
var errLine = errors.New("no such line")

// headBytes hold the lines that are wanted of /proc/meminfo (the first three) and /proc/stat (the first).
const headBytes = 512

// procFile is a file of which the beginning is read. Its zero value but for path is ready. One goroutine at a time uses it.
type procFile struct {
	path string
	file *probes.File
	head [headBytes]byte
}

// read returns the file's beginning, valid until the next read.
func (f *procFile) read() ([]byte, error) {
	if f.file == nil {
		f.file = probes.NewFile(f.path)
	}
	return f.file.Read(f.head[:])
}

// parseMemory finds MemTotal and MemAvailable (since 3.14) in the beginning of /proc/meminfo, in kB.
func parseMemory(head []byte) (total, available uint64, err error) {
	for _, line := range []struct {
		name  string
		value *uint64
	}{{"MemTotal:", &total}, {"MemAvailable:", &available}} {
		_, rest, found := bytes.Cut(head, []byte(line.name))
		text, _, whole := bytes.Cut(bytes.TrimLeft(rest, " "), []byte(" kB\n"))
		if !found || !whole {
			return 0, 0, fmt.Errorf("%s %w", line.name, errLine)
		}
		if *line.value, err = strconv.ParseUint(string(text), 10, 64); err != nil {
			return 0, 0, fmt.Errorf("%s %w", line.name, err)
		}
	}
	if total == 0 {
		return 0, 0, fmt.Errorf("MemTotal: %w", errLine)
	}
	return total, available, nil
}

// The fields of the first line of /proc/stat, in ticks of 10 ms, summed over all CPUs (proc_stat(5)). guest and guest_nice follow;
// they are inside user and nice already.
const (
	cpuUser = iota
	cpuNice
	cpuSystem
	cpuIdle
	cpuIOWait
	cpuIRQ
	cpuSoftIRQ
	cpuSteal
	cpuFields
)

// parseTimes reads the first line of /proc/stat.
func parseTimes(head []byte) (CPUTimes, error) {
	line, _, whole := bytes.Cut(head, []byte("\n"))
	line, found := bytes.CutPrefix(line, []byte("cpu "))
	if !found || !whole {
		return CPUTimes{}, fmt.Errorf("cpu: %w", errLine)
	}
	var ticks [cpuFields]uint64
	n := 0
	for field := range bytes.FieldsSeq(line) {
		if n == cpuFields {
			break
		}
		var err error
		if ticks[n], err = strconv.ParseUint(string(field), 10, 64); err != nil {
			return CPUTimes{}, fmt.Errorf("cpu: %w", err)
		}
		n++
	}
	if n < cpuFields {
		return CPUTimes{}, fmt.Errorf("cpu: %d of %d fields: %w", n, cpuFields, errLine)
	}
	const ticksPerSecond = 100 // USER_HZ
	busy := ticks[cpuUser] + ticks[cpuNice] + ticks[cpuSystem] + ticks[cpuIRQ] + ticks[cpuSoftIRQ] + ticks[cpuSteal]
	total := busy + ticks[cpuIdle] + ticks[cpuIOWait]
	return CPUTimes{busy: float64(busy) / ticksPerSecond, total: float64(total) / ticksPerSecond, known: true}, nil
}
