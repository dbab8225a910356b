package host

import (
	"testing"

	"github.com/shirou/gopsutil/v3/cpu"
	"github.com/shirou/gopsutil/v3/mem"
)

func TestParseMemory(t *testing.T) {
	for name, row := range map[string]struct {
		head             string
		total, available uint64
		ok               bool
	}{
		"linux":           {"MemTotal:       24689508 kB\nMemFree:         2031984 kB\nMemAvailable:   22905592 kB\n", 24689508, 22905592, true},
		"cut in a number": {"MemTotal:       24689508 kB\nMemFree:         2031984 kB\nMemAvailable:   229055", 0, 0, false},
		"before 3.14":     {"MemTotal: 100 kB\nMemFree: 50 kB\n", 0, 0, false},
		"no memory":       {"MemTotal: 0 kB\nMemAvailable: 0 kB\n", 0, 0, false},
		"no number":       {"MemTotal: many kB\nMemAvailable: 1 kB\n", 0, 0, false},
		"empty":           {"", 0, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			total, available, err := parseMemory([]byte(row.head))
			if total != row.total || available != row.available || (err == nil) != row.ok {
				t.Errorf("got %d, %d, %v", total, available, err)
			}
		})
	}
}

func TestParseTimes(t *testing.T) {
	for name, row := range map[string]struct {
		head        string
		busy, total float64
		ok          bool
	}{
		"linux":       {"cpu  100 200 300 4000 500 60 70 80 90 10\ncpu0 1 2\n", 8.1, 53.1, true},
		"few fields":  {"cpu  100 200 300 4000\n", 0, 0, false},
		"no line end": {"cpu  100 200 300 4000 500 60 70 80 90 10", 0, 0, false},
		"no number":   {"cpu  100 200 300 4000 500 60 70 x 90 10\n", 0, 0, false},
		"other line":  {"cpu0 100 200 300 4000 500 60 70 80 90 10\n", 0, 0, false},
		"empty":       {"", 0, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseTimes([]byte(row.head))
			if got.busy != row.busy || got.total != row.total || got.known != row.ok || (err == nil) != row.ok {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

// TestReadingIsGopsutils compares on this machine: what we read lies between two readings of gopsutil.
func TestReadingIsGopsutils(t *testing.T) {
	p := New(Config{MaxAge: -1})
	before, err := cpu.Times(false)
	if err != nil {
		t.Fatal(err)
	}
	head, err := p.stat.read()
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseTimes(head)
	if err != nil {
		t.Fatal(err)
	}
	after, err := cpu.Times(false)
	if err != nil {
		t.Fatal(err)
	}
	user := func(s cpu.TimesStat) float64 { return s.User + s.Nice + s.System + s.Irq + s.Softirq + s.Steal }
	const rounding = 1e-6
	if got.busy < user(before[0])-rounding || got.busy > user(after[0])+rounding {
		t.Errorf("busy %v s, gopsutil %v to %v", got.busy, user(before[0]), user(after[0]))
	}

	head, err = p.meminfo.read()
	if err != nil {
		t.Fatal(err)
	}
	total, _, err := parseMemory(head)
	if err != nil {
		t.Fatal(err)
	}
	memory, err := mem.VirtualMemory()
	if err != nil {
		t.Fatal(err)
	}
	if total*1024 != memory.Total {
		t.Errorf("%d bytes of memory, gopsutil %d", total*1024, memory.Total)
	}
}

// TestOldKernelIsReadByGopsutil has no MemAvailable: gopsutil takes what is free and cached.
func TestOldKernelIsReadByGopsutil(t *testing.T) {
	root := proc(t, "MemTotal: 1000 kB\nMemFree: 100 kB\nBuffers: 50 kB\nCached: 350 kB\n", "")
	if got := New(Config{ProcRoot: root}).Memory(); got.Percent != 55 {
		t.Errorf("got %+v, want 55", got)
	}
}
