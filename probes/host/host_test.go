package host

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shirou/gopsutil/v3/disk"

	"github.com/prov4ml/agent/record"
)

// proc writes a /proc with the two files that the probe reads.
func proc(t *testing.T, meminfo, stat string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range map[string]string{"meminfo": meminfo, "stat": stat} {
		if text == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestMemory(t *testing.T) {
	for name, row := range map[string]struct {
		meminfo string
		percent float64
		state   record.State
	}{
		"cache is available": {"MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 750 kB\nCached: 700 kB\n", 25, record.State_OK},
		"all in use":         {"MemTotal: 1000 kB\nMemFree: 0 kB\nMemAvailable: 0 kB\n", 100, record.State_OK},
		"more than there is": {"MemTotal: 1000 kB\nMemFree: 0 kB\nMemAvailable: 1200 kB\n", 0, record.State_OK},
		"no file":            {"", 0, record.State_UNSUPPORTED},
		"no number":          {"MemTotal: many kB\n", 0, record.State_UNSUPPORTED},
	} {
		t.Run(name, func(t *testing.T) {
			got := New(Config{ProcRoot: proc(t, row.meminfo, "")}).Memory()
			if got.State != row.state || got.Percent != row.percent || (got.Reason == "") != (row.state == record.State_OK) {
				t.Errorf("got %+v, want %v %v", got, row.percent, row.state)
			}
		})
	}
}

func TestCPUOverWindow(t *testing.T) {
	line := func(user, idle, iowait, guest int) string {
		return fmt.Sprintf("cpu  %d 0 0 %d %d 0 0 0 %d 0\ncpu0 1 1 1 1 1 1 1 1 0 0\nintr 5 0\n", user, idle, iowait, guest)
	}
	root := proc(t, "", line(1000, 1000, 0, 500))
	set := func(text string) {
		if err := os.WriteFile(filepath.Join(root, "stat"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := New(Config{ProcRoot: root, MaxAge: -1})
	got, first := p.CPU(CPUTimes{})
	if got.State != record.State_ABSENT || got.Reason == "" {
		t.Errorf("without an earlier point: %+v", got)
	}
	set(line(1030, 1050, 20, 500))
	got, second := p.CPU(first)
	if got.State != record.State_OK || math.Abs(got.Percent-30) > 1e-9 {
		t.Errorf("30 of 100 ticks busy: %+v", got)
	}
	set(line(1130, 1050, 20, 600))
	if got, _ := p.CPU(second); math.Abs(got.Percent-100) > 1e-9 {
		t.Errorf("second caller, later window: %+v", got)
	}
	if got, _ := p.CPU(first); math.Abs(got.Percent-65) > 1e-9 {
		t.Errorf("first caller keeps its own window: %+v", got)
	}
	set(line(1130, 1050, 20, 600))
	_, third := p.CPU(second)
	if got, kept := p.CPU(third); got.State != record.State_ABSENT || kept != third {
		t.Errorf("no tick has passed: %+v", got)
	}
	set("nonsense\n")
	if got, _ := p.CPU(third); got.State != record.State_UNSUPPORTED || got.Reason == "" {
		t.Errorf("unreadable: %+v", got)
	}
}

func TestSharedReadingHasAnAgeBound(t *testing.T) {
	root := proc(t, "MemTotal: 100 kB\nMemAvailable: 50 kB\n", "")
	p := New(Config{ProcRoot: root})
	now := time.Unix(1000, 0)
	p.now = func() time.Time { return now }
	read := func(want float64) {
		t.Helper()
		if got := p.Memory(); got.Percent != want {
			t.Errorf("%v after start: got %+v, want %v", now, got, want)
		}
	}
	read(50)
	if err := os.WriteFile(filepath.Join(root, "meminfo"), []byte("MemTotal: 100 kB\nMemAvailable: 25 kB\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	now = now.Add(9 * time.Millisecond)
	read(50)
	now = now.Add(time.Millisecond)
	read(75)
	// A clock that is set back must not keep an old reading for ever.
	now = now.Add(-time.Hour)
	if err := os.WriteFile(filepath.Join(root, "meminfo"), []byte("MemTotal: 100 kB\nMemAvailable: 75 kB\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	read(25)
}

func TestDisk(t *testing.T) {
	p := New(Config{})
	got := p.Disk(os.Getpid(), "")
	want, err := disk.Usage("/")
	if err != nil {
		t.Fatal(err)
	}
	if got.State != record.State_OK || math.Abs(got.Percent-want.UsedPercent) > 1 {
		t.Errorf("root file system: got %+v, gopsutil says %v", got, want.UsedPercent)
	}
	if got := p.Disk(os.Getpid(), "/no/such/path"); got.State != record.State_ABSENT || got.Reason == "" {
		t.Errorf("missing path: %+v", got)
	}
	if got := p.Disk(1<<22+1, ""); got.State != record.State_ABSENT || got.Reason == "" {
		t.Errorf("no such process: %+v", got)
	}
	// procfs has no blocks: neither 0 nor NaN percent.
	if got := p.Disk(os.Getpid(), "/proc"); got.State != record.State_ABSENT || got.Reason == "" {
		t.Errorf("file system without size: %+v", got)
	}
}

func TestLiveMachine(t *testing.T) {
	p := New(Config{})
	if got := p.Memory(); got.State != record.State_OK || got.Percent <= 0 || got.Percent >= 100 {
		t.Errorf("memory: %+v", got)
	}
	for _, status := range p.Status() {
		if !status.OK {
			t.Errorf("%+v", status)
		}
	}
}

func BenchmarkShared(b *testing.B) {
	p := New(Config{})
	var prev CPUTimes
	b.ReportAllocs()
	for b.Loop() {
		p.Memory()
		_, prev = p.CPU(prev)
	}
}

func BenchmarkRead(b *testing.B) {
	p := New(Config{MaxAge: -1})
	b.ReportAllocs()
	for b.Loop() {
		p.Memory()
	}
}

func BenchmarkDisk(b *testing.B) {
	p := New(Config{})
	pid := os.Getpid()
	b.ReportAllocs()
	for b.Loop() {
		p.Disk(pid, "")
	}
}
