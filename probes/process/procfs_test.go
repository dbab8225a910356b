package process

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/prov4ml/agent/probes"
	"github.com/prov4ml/agent/record"
)

// fixture is a /proc that a test writes.
type fixture struct {
	t    *testing.T
	root string
}

// entry is one process of a fixture.
type entry struct {
	pid, ppid   int
	start       uint64
	comm        string // default "python"
	state       string // default S
	faults      uint64 // own minor faults
	childFaults uint64
	ticks       uint64
	chars       uint64 // wchar
	written     uint64 // write_bytes
	rss         uint64 // kB
	highest     uint64 // kB, default rss
	ignores     bool   // SIGCHLD
}

func newFixture(t *testing.T, entries ...entry) *fixture {
	f := &fixture{t: t, root: t.TempDir()}
	for _, e := range entries {
		f.set(e)
	}
	return f
}

func (f *fixture) set(e entry) {
	f.t.Helper()
	directory := filepath.Join(f.root, strconv.Itoa(e.pid))
	if err := os.MkdirAll(directory, 0o700); err != nil {
		f.t.Fatal(err)
	}
	if e.comm == "" {
		e.comm = "python"
	}
	if e.state == "" {
		e.state = "S"
	}
	mask, memory := 0, fmt.Sprintf("VmHWM:\t%d kB\nVmRSS:\t%d kB\nVmSwap:\t4 kB\n", max(e.highest, e.rss), e.rss)
	if e.ignores {
		mask = 1 << 16
	}
	if e.state == "Z" {
		memory = ""
	}
	for name, text := range map[string]string{
		"stat": fmt.Sprintf("%d (%s) %s %d 1 1 0 -1 4194304 %d %d 0 0 %d 0 0 0 20 0 1 0 %d 3133440 412\n",
			e.pid, e.comm, e.state, e.ppid, e.faults, e.childFaults, e.ticks, e.start),
		"io": fmt.Sprintf("rchar: 0\nwchar: %d\nsyscr: 1\nsyscw: 1\nread_bytes: 0\nwrite_bytes: %d\ncancelled_write_bytes: 0\n",
			e.chars, e.written),
		"status": fmt.Sprintf("Name:\t%s\n%sSigIgn:\t%016x\n", e.comm, memory, mask),
	} {
		// At once, like the kernel's files: the probe's sampler reads meanwhile.
		path := filepath.Join(directory, name)
		if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o600), os.Rename(path+".new", path)); err != nil {
			f.t.Fatal(err)
		}
	}
}

func (f *fixture) remove(pids ...int) {
	f.t.Helper()
	for _, pid := range pids {
		if err := os.RemoveAll(filepath.Join(f.root, strconv.Itoa(pid))); err != nil {
			f.t.Fatal(err)
		}
	}
}

// probe is a probe over the fixture whose list of processes is always due.
func (f *fixture) probe() *procfs {
	p := NewProcfs(ProcfsConfig{Root: f.root}).(*procfs)
	now := time.Unix(0, 0)
	p.now = func() time.Time { now = now.Add(time.Hour); return now }
	f.t.Cleanup(func() { _ = p.Close() })
	return p
}

func (f *fixture) track(p Probe, pid int, start uint64) Tracked {
	f.t.Helper()
	tracked, err := p.Track(probes.Process{PID: pid, StartTicks: start})
	if err != nil {
		f.t.Fatal(err)
	}
	return tracked
}

func look(t *testing.T, p Probe, ids ...TreeID) Snapshot {
	t.Helper()
	var s Snapshot
	if err := p.Snapshot(ids, nil, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// written returns the IOWriteBytes of each tree.
func written(t *testing.T, p Probe, ids ...TreeID) []uint64 {
	t.Helper()
	var out []uint64
	for _, tree := range look(t, p, ids...).Trees {
		out = append(out, tree.IOWriteBytes)
	}
	return out
}

func expect(t *testing.T, what string, got []uint64, want ...uint64) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: (-want +got)\n%s", what, diff)
	}
}

func TestCountingStartsAtTrack(t *testing.T) {
	f := newFixture(t, entry{pid: 10, ppid: 1, start: 100, chars: 500}, entry{pid: 11, ppid: 10, start: 101, chars: 70}, entry{pid: 1})
	p := f.probe()
	id := f.track(p, 10, 100).ID
	expect(t, "at once", written(t, p, id), 0)
	f.set(entry{pid: 10, ppid: 1, start: 100, chars: 600})
	f.set(entry{pid: 11, ppid: 10, start: 101, chars: 80})
	f.set(entry{pid: 12, ppid: 11, start: 102, chars: 3}) // born since: whole
	f.set(entry{pid: 13, ppid: 1, start: 103, chars: 9000})
	expect(t, "the tree's only", written(t, p, id), 113)
}

// The kernel adds a child's whole life to the parent that waits for it.
func TestChildThatIsWaitedForIsCountedOnce(t *testing.T) {
	f := newFixture(t, entry{pid: 10, ppid: 1, start: 100, chars: 500}, entry{pid: 11, ppid: 10, start: 101, chars: 70})
	p := f.probe()
	id := f.track(p, 10, 100).ID
	f.set(entry{pid: 11, ppid: 10, start: 101, chars: 100})
	expect(t, "alive", written(t, p, id), 30)
	f.remove(11)
	f.set(entry{pid: 10, ppid: 1, start: 100, chars: 500 + 108}) // 8 more at the end of its life
	s := look(t, p, id)
	expect(t, "waited for", written(t, p, id), 38)
	if s.Trees[0].ProcessesExited != 1 || s.Trees[0].Processes != 1 || s.LossCount != 0 {
		t.Errorf("%+v", s.Trees[0].Gauges)
	}
	// One that nobody saw alive.
	f.set(entry{pid: 10, ppid: 1, start: 100, chars: 500 + 108 + 1000})
	expect(t, "unseen child", written(t, p, id), 1038)
}

func TestTransientShortfallNeverShows(t *testing.T) {
	f := newFixture(t, entry{pid: 10, ppid: 1, start: 100}, entry{pid: 11, ppid: 10, start: 101})
	p := f.probe()
	id := f.track(p, 10, 100).ID
	f.set(entry{pid: 11, ppid: 10, start: 101, chars: 100})
	expect(t, "alive", written(t, p, id), 100)
	// The parent was read just before it waited.
	f.remove(11)
	expect(t, "not taken over yet", written(t, p, id), 100)
	f.set(entry{pid: 10, ppid: 1, start: 100, chars: 100})
	expect(t, "taken over", written(t, p, id), 100)
}

func TestOrphanKeepsItsLastReading(t *testing.T) {
	for name, row := range map[string]struct {
		zombie bool
		loss   uint64
	}{"seen as a zombie": {true, 0}, "not seen at its end": {false, 1}} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, entry{pid: 10, ppid: 1, start: 100}, entry{pid: 11, ppid: 10, start: 101}, entry{pid: 12, ppid: 11, start: 102})
			p := f.probe()
			id := f.track(p, 10, 100).ID
			f.remove(11)
			f.set(entry{pid: 12, ppid: 1, start: 102, chars: 40})
			f.set(entry{pid: 13, ppid: 12, start: 103, chars: 2}) // the orphan's own child
			expect(t, "alive", written(t, p, id), 42)
			if row.zombie {
				f.set(entry{pid: 12, ppid: 1, start: 102, chars: 41, state: "Z"})
				f.set(entry{pid: 13, ppid: 1, start: 103, chars: 2})
				look(t, p, id)
			}
			f.remove(12, 13)
			s := look(t, p, id)
			want := uint64(42)
			if row.zombie {
				want = 43
			}
			expect(t, "dead", written(t, p, id), want)
			lost := row.loss + 1 // 13 is an orphan that nobody saw end, or went with 12
			if !row.zombie {
				lost = 1
			}
			if s.LossCount != lost || (s.Incomplete == "") != (lost == 0) {
				t.Errorf("loss %d %q, want %d", s.LossCount, s.Incomplete, lost)
			}
		})
	}
}

func TestParentThatIgnoresItsChildrenTakesNothingOver(t *testing.T) {
	f := newFixture(t, entry{pid: 10, ppid: 1, start: 100, ignores: true}, entry{pid: 11, ppid: 10, start: 101})
	p := f.probe()
	id := f.track(p, 10, 100).ID
	f.set(entry{pid: 11, ppid: 10, start: 101, chars: 100})
	look(t, p, id)
	f.remove(11)
	s := look(t, p, id)
	expect(t, "dead", written(t, p, id), 100)
	if s.LossCount != 1 {
		t.Errorf("loss %d", s.LossCount)
	}
	f.set(entry{pid: 10, ppid: 1, start: 100, ignores: true, chars: 7})
	expect(t, "its own", written(t, p, id), 107)
}

// A shell waits for its child and exits, all between two looks.
func TestChainThatIsGoneAtOnceIsCountedOnce(t *testing.T) {
	f := newFixture(t, entry{pid: 10, ppid: 1, start: 100}, entry{pid: 11, ppid: 10, start: 101}, entry{pid: 12, ppid: 11, start: 102})
	p := f.probe()
	id := f.track(p, 10, 100).ID
	f.set(entry{pid: 11, ppid: 10, start: 101, chars: 5})
	f.set(entry{pid: 12, ppid: 11, start: 102, chars: 100})
	expect(t, "alive", written(t, p, id), 105)
	f.remove(11, 12)
	f.set(entry{pid: 10, ppid: 1, start: 100, chars: 105 + 20})
	expect(t, "gone", written(t, p, id), 125)
}

func TestNestedTreesAddUp(t *testing.T) {
	f := newFixture(t, entry{pid: 10, ppid: 1, start: 100}, entry{pid: 11, ppid: 10, start: 101}, entry{pid: 12, ppid: 11, start: 102})
	p := f.probe()
	outer := f.track(p, 10, 100)
	f.set(entry{pid: 11, ppid: 10, start: 101, chars: 30})
	f.set(entry{pid: 12, ppid: 11, start: 102, chars: 4})
	inner := f.track(p, 11, 101)
	if inner.Parent != outer.ID || outer.Parent != 0 {
		t.Errorf("outer %+v, inner %+v", outer, inner)
	}
	expect(t, "the past stays outside", written(t, p, outer.ID, inner.ID), 34, 0)
	f.set(entry{pid: 11, ppid: 10, start: 101, chars: 130})
	f.set(entry{pid: 12, ppid: 11, start: 102, chars: 1004})
	f.set(entry{pid: 13, ppid: 12, start: 103, chars: 1})
	expect(t, "innermost only", written(t, p, outer.ID, inner.ID), 34, 1101)
	// The inner root is waited for by the outer one, having waited for its own; 13 is an orphan.
	f.remove(11, 12)
	f.set(entry{pid: 13, ppid: 1, start: 103, chars: 2})
	f.set(entry{pid: 10, ppid: 1, start: 100, chars: 130 + 1004 + 5})
	expect(t, "the end moves out, nothing twice", written(t, p, outer.ID, inner.ID), 34+5, 1102)
	p.Release(inner.ID)
	f.set(entry{pid: 13, ppid: 1, start: 103, chars: 12})
	expect(t, "what lives on is the outer tree's", written(t, p, outer.ID), 39+10)
	if err := p.Snapshot([]TreeID{inner.ID}, nil, &Snapshot{}); err == nil {
		t.Error("a tree that was given up can be read")
	}
}

func TestTreeMadeAroundAnother(t *testing.T) {
	f := newFixture(t, entry{pid: 10, ppid: 1, start: 100}, entry{pid: 11, ppid: 10, start: 101}, entry{pid: 12, ppid: 11, start: 102})
	p := f.probe()
	inner := f.track(p, 12, 102)
	outer := f.track(p, 10, 100)
	middle := f.track(p, 11, 101)
	if outer.Parent != 0 || middle.Parent != outer.ID {
		t.Errorf("outer %+v, middle %+v", outer, middle)
	}
	f.set(entry{pid: 12, ppid: 11, start: 102, chars: 9})
	expect(t, "innermost", written(t, p, outer.ID, middle.ID, inner.ID), 0, 0, 9)
	p.Release(inner.ID)
	f.set(entry{pid: 12, ppid: 11, start: 102, chars: 10})
	expect(t, "given to the middle", written(t, p, outer.ID, middle.ID), 0, 1)
}

func TestPidReuse(t *testing.T) {
	f := newFixture(t, entry{pid: 10, ppid: 1, start: 100}, entry{pid: 11, ppid: 10, start: 101})
	p := f.probe()
	id := f.track(p, 10, 100).ID
	f.set(entry{pid: 11, ppid: 10, start: 101, chars: 50})
	expect(t, "first", written(t, p, id), 50)
	f.set(entry{pid: 10, ppid: 1, start: 100, chars: 50})
	f.set(entry{pid: 11, ppid: 1, start: 900, chars: 7777})
	expect(t, "a stranger has the pid", written(t, p, id), 50)
	f.set(entry{pid: 11, ppid: 10, start: 901, chars: 3})
	expect(t, "a new child has the pid", written(t, p, id), 53)
	f.set(entry{pid: 10, ppid: 1, start: 950, chars: 8888})
	expect(t, "a stranger has the root's", written(t, p, id), 53)
	if _, err := p.Track(probes.Process{PID: 10, StartTicks: 100}); !errors.Is(err, ErrGone) {
		t.Errorf("track by an old start time: %v", err)
	}
	if _, err := p.Track(probes.Process{PID: 99, StartTicks: 1}); !errors.Is(err, ErrGone) {
		t.Errorf("track nobody: %v", err)
	}
}

func TestFaultsTimeAndMemory(t *testing.T) {
	f := newFixture(t, entry{pid: 10, ppid: 1, start: 100, faults: 5, ticks: 10, rss: 1000}, entry{pid: 11, ppid: 10, start: 101, rss: 24, comm: "a) R 9 (b"})
	p := f.probe()
	id := f.track(p, 10, 100).ID
	f.set(entry{pid: 10, ppid: 1, start: 100, faults: 7, ticks: 13, rss: 2000, written: 4096})
	got := look(t, p, id)
	want := Tree{
		ID:       id,
		Counters: Counters{MinorFaults: 2, CPUNanos: 30_000_000, DiskWriteBytes: 4096},
		Gauges:   Gauges{RSSBytes: 2024 << 10, SwapBytes: 8 << 10, Processes: 2},
	}
	if diff := cmp.Diff(want, got.Trees[0]); diff != "" {
		t.Error(diff)
	}
	for name, group := range map[string]Group{"disk": got.Disk, "task": got.Task, "calls": got.Calls} {
		if group.State != record.State_INCOMPLETE || group.Source != record.Source_PROCFS || group.Reason == "" {
			t.Errorf("%s: %+v", name, group)
		}
	}
	for name, group := range map[string]Group{"blocks": got.Blocks, "dirty": got.Dirty, "latency": got.Latency, "reclaim": got.Reclaim} {
		if group.State != record.State_UNSUPPORTED || group.Reason == "" {
			t.Errorf("%s: %+v", name, group)
		}
	}
	if got.Memory.State != record.State_OK {
		t.Errorf("memory: %+v", got.Memory)
	}
}

func TestPeakBounds(t *testing.T) {
	f := newFixture(t, entry{pid: 10, ppid: 1, start: 100, rss: 1000, highest: 3000})
	p := f.probe()
	id := f.track(p, 10, 100).ID
	peak := p.NewPeak([]TreeID{id})
	read := func() PeakReading {
		t.Helper()
		var s Snapshot
		if err := p.Snapshot([]TreeID{id}, peak, &s); err != nil {
			t.Fatal(err)
		}
		if s.Peak.SampleHertz <= 0 {
			t.Errorf("rate %v", s.Peak.SampleHertz)
		}
		s.Peak.SampleHertz = 0
		return s.Peak
	}
	expect := func(what string, got PeakReading, bytes, upper uint64, exact bool) {
		t.Helper()
		if want := (PeakReading{Bytes: bytes << 10, UpperBytes: upper << 10, Exact: exact}); got != want {
			t.Errorf("%s: got %+v, want %+v", what, got, want)
		}
	}
	read()
	expect("an old mark is a bound", read(), 1000, 3000, false)
	f.set(entry{pid: 10, ppid: 1, start: 100, rss: 1500, highest: 5000})
	expect("a mark that has risen is the peak", read(), 5000, 5000, true)
	f.set(entry{pid: 11, ppid: 10, start: 101, rss: 200})
	expect("a process has come", read(), 1700, 0, false)
	expect("two that stay", read(), 1700, 5200, false)
	f.set(entry{pid: 10, ppid: 1, start: 100, rss: 1500, highest: 5000, childFaults: 8})
	expect("a child that nobody saw", read(), 1700, 0, false)
	f.set(entry{pid: 10, ppid: 1, start: 100, rss: 300, highest: 400, childFaults: 8})
	expect("exec began a new mark", read(), 1700, 0, false)
	peak.Close()
}

func TestKernelWithoutIOAccounting(t *testing.T) {
	f := newFixture(t, entry{pid: 10, ppid: 1, start: 100})
	p := f.probe()
	id := f.track(p, 10, 100).ID
	if err := os.Remove(filepath.Join(f.root, "10", "io")); err != nil {
		t.Fatal(err)
	}
	s := look(t, p, id)
	for name, group := range map[string]Group{"disk": s.Disk, "calls": s.Calls} {
		if group.State != record.State_UNSUPPORTED || !strings.Contains(group.Reason, "CONFIG_TASK_IO_ACCOUNTING") {
			t.Errorf("%s: %+v", name, group)
		}
	}
	if s.Task.State != record.State_INCOMPLETE {
		t.Errorf("faults and time are still known: %+v", s.Task)
	}
}

// strangerVariable tells a copy of this test binary, run as nobody, to look at init.
const strangerVariable = "PROV4ML_TEST_STRANGER"

func TestAnotherUsersProcess(t *testing.T) {
	if os.Getuid() == 0 && os.Getenv(strangerVariable) == "" {
		// The directories of go test are closed to others.
		directory, err := os.MkdirTemp("/tmp", "stranger")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(directory)
		if err := os.Chmod(directory, 0o755); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(os.Args[0])
		if err != nil {
			t.Fatal(err)
		}
		binary := filepath.Join(directory, "process.test")
		if err := os.WriteFile(binary, text, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(binary, "-test.run", "^TestAnotherUsersProcess$")
		cmd.Env, cmd.Dir = []string{strangerVariable + "=1"}, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	p := NewProcfs(ProcfsConfig{}).(*procfs)
	defer p.Close()
	init, err := ReadStat("/proc", 1)
	if err != nil {
		t.Fatal(err)
	}
	tracked, err := p.Track(init.Process)
	if err != nil {
		t.Fatal(err)
	}
	s := look(t, p, tracked.ID)
	if s.Disk.State == record.State_OK || !strings.Contains(s.Disk.Reason, "CAP_SYS_PTRACE") {
		t.Errorf("disk: %+v", s.Disk)
	}
	if s.Trees[0].RSSBytes == 0 || s.Memory.State != record.State_OK {
		t.Errorf("memory is there for all to read: %+v %+v", s.Trees[0].Gauges, s.Memory)
	}
}

func TestParseStat(t *testing.T) {
	for name, row := range map[string]struct {
		text string
		want Stat
		bad  bool
	}{
		"plain": {
			text: "17605 (cat) R 17603 17603 10015 0 -1 4194304 102 3 5 7 11 13 17 19 20 0 1 0 125953 3133440 412\n",
			want: Stat{
				Process: probes.Process{PID: 17605, StartTicks: 125953}, Comm: "cat", State: 'R', PPID: 17603,
				MinorFaults: 102, ChildMinorFaults: 3, MajorFaults: 5, ChildMajorFaults: 7, CPUTicks: 24, ChildCPUTicks: 36,
			},
		},
		"name with everything": {
			text: "1 (a) Z 9 (b)) S 0 1 1 0 -1 4 1 1 1 1 1 1 1 1 20 0 1 0 5 0 0",
			want: Stat{
				Process: probes.Process{PID: 1, StartTicks: 5}, Comm: "a) Z 9 (b)", State: 'S',
				MinorFaults: 1, ChildMinorFaults: 1, MajorFaults: 1, ChildMajorFaults: 1, CPUTicks: 2, ChildCPUTicks: 2,
			},
		},
		"empty":     {bad: true},
		"cut short": {text: "1 (a) S 0 1 1", bad: true},
		"no name":   {text: "1 S 0 1 1 0 -1 4 1 1 1 1 1 1 1 1 20 0 1 0 5 0 0", bad: true},
		"no number": {text: "1 (a) S 0 1 1 0 -1 4 1 1 1 1 1 1 1 1 20 0 1 0 x 0 0", bad: true},
		"no pid":    {text: "x (a) S 0 1 1 0 -1 4 1 1 1 1 1 1 1 1 20 0 1 0 5 0 0", bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseStat([]byte(row.text))
			if (err != nil) != row.bad {
				t.Fatalf("%v", err)
			}
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A process chooses its own name, so the text of stat is only as good as its user.
func FuzzParseStat(f *testing.F) {
	f.Add([]byte("17605 (cat) R 17603 17603 10015 0 -1 4194304 102 3 5 7 11 13 17 19 20 0 1 0 125953 3133440 412\n"))
	f.Add([]byte("1 (a) Z 9 (b)) S 0 1 1 0 -1 4 1 1 1 1 1 1 1 1 20 0 1 0 5 0 0"))
	f.Add([]byte(")("))
	f.Fuzz(func(t *testing.T, text []byte) {
		stat, err := parseStat(text)
		if err == nil && (stat.PID <= 0 || stat.PPID < 0) {
			t.Errorf("%+v", stat)
		}
		parseIO(text, &usage{})
		parseStatus(text, &member{})
	})
}

// shell is a live bash that a test gives lines to; each is done when it returns.
type shell struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Reader
	start uint64
}

func newShell(t *testing.T) *shell {
	t.Helper()
	s := &shell{t: t, cmd: exec.Command("bash")}
	s.cmd.Dir = t.TempDir()
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := s.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.in, s.out = in, bufio.NewReader(out)
	t.Cleanup(func() {
		_ = in.Close()
		_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
		_ = s.cmd.Wait()
	})
	s.do(":")
	stat, err := ReadStat("/proc", s.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	s.start = stat.StartTicks
	return s
}

// do runs a line and returns what it printed.
func (s *shell) do(line string) string {
	s.t.Helper()
	if _, err := fmt.Fprintf(s.in, "%s\necho done\n", line); err != nil {
		s.t.Fatal(err)
	}
	var printed strings.Builder
	for {
		text, err := s.out.ReadString('\n')
		if err != nil {
			s.t.Fatal(err)
		}
		if text == "done\n" {
			return strings.TrimSpace(printed.String())
		}
		printed.WriteString(text)
	}
}

// The kernel's own rule, on which the probe stands: the bytes of a child that is waited for are in its parent's /proc/PID/io, and
// those of an orphan are not.
func TestLiveTree(t *testing.T) {
	const mib = 1 << 20
	s := newShell(t)
	p := NewProcfs(ProcfsConfig{})
	defer p.Close()
	tracked, err := p.Track(probes.Process{PID: s.cmd.Process.Pid, StartTicks: s.start})
	if err != nil {
		t.Fatal(err)
	}
	wrote := func() uint64 {
		t.Helper()
		time.Sleep(20 * time.Millisecond) // past listAge
		return look(t, p, tracked.ID).Trees[0].IOWriteBytes
	}
	// The shell and dd write a few bytes of their own to pipes.
	about := func(what string, got, want uint64) {
		t.Helper()
		if got < want || got > want+4096 {
			t.Errorf("%s: wrote %d, counted %d", what, want, got)
		}
	}
	about("nothing yet", wrote(), 0)
	s.do("dd if=/dev/zero of=a bs=1M count=8 status=none")
	about("a child that nobody saw", wrote(), 8*mib)
	s.do("bash -c 'dd if=/dev/zero of=b bs=1M count=4 status=none; exit 0'")
	about("a grandchild", wrote(), 12*mib)
}

func TestLiveOrphanStaysAMember(t *testing.T) {
	const mib = 1 << 20
	s := newShell(t)
	p := NewProcfs(ProcfsConfig{})
	defer p.Close()
	tracked, err := p.Track(probes.Process{PID: s.cmd.Process.Pid, StartTicks: s.start})
	if err != nil {
		t.Fatal(err)
	}
	// The inner shell leaves a child behind that waits for the file "go".
	s.do("mkfifo ready; bash -c '(trap \"\" HUP; echo > ready; until [ -e go ]; do sleep 0.02; done; dd if=/dev/zero of=d bs=1M count=2 status=none; " +
		"touch finished; exec sleep 1000) >/dev/null 2>&1 & read x < ready; until [ -e leave ]; do sleep 0.02; done' >/dev/null 2>&1 &")
	count := func() Tree {
		t.Helper()
		time.Sleep(20 * time.Millisecond)
		return look(t, p, tracked.ID).Trees[0]
	}
	waitFor := func(what string, done func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(what)
			}
		}
	}
	waitFor("the child is seen", func() bool { return count().Processes >= 3 })
	s.do("touch leave; wait")
	before := count().IOWriteBytes
	s.do("touch go")
	waitFor("the orphan writes", func() bool {
		_, err := os.Stat(filepath.Join(s.cmd.Dir, "finished"))
		return err == nil
	})
	if got := count().IOWriteBytes - before; got < 2*mib || got > 2*mib+4096 {
		t.Errorf("the orphan wrote 2 MiB, counted %d", got)
	}
}

func BenchmarkProcfsSnapshot(b *testing.B) {
	p := NewProcfs(ProcfsConfig{})
	defer p.Close()
	stat, err := ReadStat("/proc", os.Getpid())
	if err != nil {
		b.Fatal(err)
	}
	tracked, err := p.Track(stat.Process)
	if err != nil {
		b.Fatal(err)
	}
	var s Snapshot
	b.ReportAllocs()
	for b.Loop() {
		if err := p.Snapshot([]TreeID{tracked.ID}, nil, &s); err != nil {
			b.Fatal(err)
		}
	}
}
