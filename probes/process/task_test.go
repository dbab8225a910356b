package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/prov4ml/agent/bpf"
	"github.com/prov4ml/agent/probes/process/internal/actor"
	"github.com/prov4ml/agent/record"
)

// settled reads until the value is as wanted: a task is freed a few RCU grace periods after it was waited for.
func (k *kernel) settled(t *testing.T, tree TreeID, done func(*Tree) bool) Tree {
	t.Helper()
	var got Tree
	for range 200 {
		got = k.mustSnapshot(t, tree).Trees[0]
		if done(&got) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return got
}

// Children that write a known amount and exit, threads of theirs too.
func TestTaskCountersOfTheExited(t *testing.T) {
	k := openTestKernel(t)
	path := filepath.Join(t.TempDir(), "a")
	const children, bytes = 100, 64 << 10
	a := play(t, step{Do: "forks", N: children, Steps: []step{
		{Do: "write", Path: path, Bytes: bytes / 2},
		{Do: "thread", Steps: []step{{Do: "write", Path: path, Bytes: bytes / 2}}},
	}})
	a.blocked()
	tree := k.mustTrack(t, a)
	at, err := ReadStat("/proc", a.PID)
	if err != nil {
		t.Fatal(err)
	}
	a.next()

	// Read all the while: nothing is counted twice, nothing goes back.
	var last Tree
	exited := make(chan error, 1)
	go func() { exited <- a.command.Wait() }()
	for running := true; running; {
		select {
		case err := <-exited:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		default:
		}
		now := k.mustSnapshot(t, tree).Trees[0]
		for _, counter := range []struct {
			name      string
			last, now uint64
		}{
			{"wchar", last.IOWriteBytes, now.IOWriteBytes},
			{"rchar", last.IOReadBytes, now.IOReadBytes},
			{"minor faults", last.MinorFaults, now.MinorFaults},
			{"CPU time", last.CPUNanos, now.CPUNanos},
			{"exited", last.ProcessesExited, now.ProcessesExited},
		} {
			if counter.now < counter.last {
				t.Fatalf("%s went back from %d to %d", counter.name, counter.last, counter.now)
			}
		}
		if now.IOWriteBytes > children*bytes {
			t.Fatalf("wchar is %d, more than all that is ever written", now.IOWriteBytes)
		}
		last = now
	}

	usage := a.command.ProcessState.SysUsage().(*syscall.Rusage)
	faults := uint64(usage.Minflt) - at.MinorFaults
	got := k.settled(t, tree, func(now *Tree) bool { return now.MinorFaults == faults && now.IOWriteBytes == children*bytes })
	if got.IOWriteBytes != children*bytes {
		// From 7.0 on an exit can pass the program by: then the probe says that something is missing, and no more than what a thread of
		// a child wrote for each.
		time.Sleep(missedEvery)
		s := k.mustSnapshot(t, tree)
		if missing := children*bytes - got.IOWriteBytes; s.Incomplete == "" || missing > s.LossCount*bytes/2 {
			t.Errorf("wchar: %d, want %d; lost %d %s", got.IOWriteBytes, children*bytes, s.LossCount, s.Incomplete)
		}
	}
	if got.MinorFaults != faults {
		t.Errorf("minor faults: %d, want %d", got.MinorFaults, faults)
	}
	if got.Processes != 0 {
		t.Errorf("%d processes, want 0", got.Processes)
	}
	if got.ProcessesExited < children+1 {
		t.Errorf("%d exited, want at least %d", got.ProcessesExited, children+1)
	}
	// The kernel scales user and system time to the same sum that it keeps in nanoseconds. What a child uses after its
	// parent has read that is in ours alone.
	cpu := time.Duration(usage.Utime.Nano()+usage.Stime.Nano()) - time.Duration(at.CPUTicks)*10*time.Millisecond
	if off := time.Duration(got.CPUNanos) - cpu; off.Abs() > max(20*time.Millisecond, cpu/100) {
		t.Errorf("CPU time: %v, want %v", time.Duration(got.CPUNanos), cpu)
	}
}

func TestTaskCountersOfTheLiving(t *testing.T) {
	k := shareTestKernel(t)
	path := filepath.Join(t.TempDir(), "a")
	a := play(t,
		step{Do: "write", Path: path, Bytes: mib}, step{Do: "read", Path: path, Bytes: mib / 2},
		step{Do: "memory", Bytes: 4 * mib}, step{Do: "spin", N: 60}, step{Do: "pause"})
	a.blocked()
	tree := k.mustTrack(t, a)
	before, err := ReadStat("/proc", a.PID)
	if err != nil {
		t.Fatal(err)
	}
	ioBefore := readIO(t, a.PID)
	zero := k.mustSnapshot(t, tree).Trees[0]
	if zero.IOWriteBytes != 0 || zero.IOReadBytes != 0 || zero.MinorFaults != 0 {
		t.Errorf("counting does not start at 0: %+v", zero)
	}
	a.next()
	a.paused()
	a.blocked()
	got := k.mustSnapshot(t, tree).Trees[0]
	after, err := ReadStat("/proc", a.PID)
	if err != nil {
		t.Fatal(err)
	}
	ioAfter := readIO(t, a.PID)
	for _, counter := range []struct {
		name      string
		got, want uint64
	}{
		{"rchar", got.IOReadBytes, ioAfter["rchar"] - ioBefore["rchar"]},
		{"wchar", got.IOWriteBytes, ioAfter["wchar"] - ioBefore["wchar"]},
		{"minor faults", got.MinorFaults, after.MinorFaults - before.MinorFaults},
		{"major faults", got.MajorFaults, after.MajorFaults - before.MajorFaults},
		{"exited", got.ProcessesExited, 0},
		{"processes", got.Processes, 1},
	} {
		if counter.got != counter.want {
			t.Errorf("%s: %d, want %d", counter.name, counter.got, counter.want)
		}
	}
	if got.IOWriteBytes < mib || got.MinorFaults < 4*mib/4096 || time.Duration(got.CPUNanos) < 60*time.Millisecond {
		t.Errorf("less than was done: %+v", got.Counters)
	}
}

func readIO(t *testing.T, pid int) map[string]uint64 {
	t.Helper()
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/io")
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]uint64{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if values[name], err = strconv.ParseUint(value, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	return values
}

// kilobytes reads a field of /proc/PID/smaps_rollup, which counts page by page.
func kilobytes(t *testing.T, pid int, field string) uint64 {
	t.Helper()
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatalf("no %s in smaps_rollup", field)
	return 0
}

func TestMemory(t *testing.T) {
	k := shareTestKernel(t)
	a := play(t, step{Do: "spawn", Steps: []step{{Do: "hold", Bytes: 64 * mib}, {Do: "pause"}}})
	tree := k.mustTrack(t, a)
	a.next()
	a.paused()
	got := k.mustSnapshot(t, tree)
	want := kilobytes(t, a.PID, "Rss")
	for _, pid := range descendants(t, a.PID) {
		want += kilobytes(t, pid, "Rss")
	}
	if got.Trees[0].RSSBytes != want {
		t.Errorf("RSS %d, want %d (%+d)", got.Trees[0].RSSBytes, want, int64(got.Trees[0].RSSBytes-want))
	}
	if got.Trees[0].Processes != 2 || got.Memory.State != record.State_OK {
		t.Errorf("%d processes, memory %v", got.Trees[0].Processes, got.Memory)
	}
}

func TestPeakOfOneRunnerIsExact(t *testing.T) {
	k := shareTestKernel(t)
	a := play(t, step{Do: "memory", Bytes: 128 * mib}, step{Do: "pause"}, step{Do: "pause"})
	tree := k.mustTrack(t, a)
	p := k.NewPeak([]TreeID{tree})
	defer p.Close()
	var before, during, after Snapshot
	read := func(s *Snapshot) {
		t.Helper()
		if err := k.Snapshot([]TreeID{tree}, p, s); err != nil {
			t.Fatal(err)
		}
	}
	read(&before)
	a.next()
	a.paused()
	read(&during)
	a.next()
	a.paused()
	read(&after)
	base := before.Trees[0].RSSBytes
	// The kernel keeps the mark from counters that each CPU may be behind with.
	slack := k.counterSlack() * k.pageBytes
	if !during.Peak.Exact || during.Peak.Bytes+slack < base+128*mib || during.Peak.UpperBytes < base+128*mib || during.Peak.Bytes > base+132*mib {
		t.Errorf("peak %+v, want exactly %d and a little", during.Peak, base+128*mib)
	}
	if during.Trees[0].RSSBytes > base+4*mib { // the runtime, and pages of the program read for the first time
		t.Errorf("RSS after it was freed: %d", during.Trees[0].RSSBytes)
	}
	// The mark of the process stays where it was; the next window does not have that peak.
	if after.Peak.Bytes > base+4*mib || after.Peak.UpperBytes < after.Peak.Bytes {
		t.Errorf("peak of the next window: %+v", after.Peak)
	}
}

func TestPeakOfAChildIsBounded(t *testing.T) {
	k := shareTestKernel(t)
	// Longer on a machine so slow that the sampler can afford but one sample a second.
	hold := func(milliseconds int) []step {
		return []step{{Do: "spawn", Steps: []step{{Do: "memory", Bytes: 96 * mib, N: milliseconds}}}, {Do: "pause"}}
	}
	a := play(t, append(hold(200), hold(3000)...)...)
	tree := k.mustTrack(t, a)
	p := k.NewPeak([]TreeID{tree})
	defer p.Close()
	var s Snapshot
	if err := k.Snapshot([]TreeID{tree}, p, &s); err != nil {
		t.Fatal(err)
	}
	base := s.Trees[0].RSSBytes
	for range 2 {
		a.next()
		a.paused()
		if err := k.Snapshot([]TreeID{tree}, p, &s); err != nil {
			t.Fatal(err)
		}
		if s.Peak.UpperBytes < base+96*mib {
			t.Errorf("peak %+v, want at most %d or more", s.Peak, base+96*mib)
		}
		if s.Peak.Bytes >= base+96*mib || s.Peak.SampleHertz >= 10 {
			break
		}
	}
	if s.Peak.Bytes < base+96*mib {
		t.Errorf("peak %+v, want at least %d", s.Peak, base+96*mib)
	}
	if s.Peak.UpperBytes < s.Peak.Bytes || s.Peak.SampleHertz < minSampleHertz || s.Peak.SampleHertz > maxSampleHertz {
		t.Errorf("peak %+v", s.Peak)
	}
}

// Swap and stalls: a process in a cgroup that is too small for it, with a swap file on a volume of the test.
func TestReclaimAndSwap(t *testing.T) {
	k := shareTestKernel(t)
	v := newVolume(t, "ext4", filepath.Join(t.TempDir(), "image"), 1, mkfsExt4)
	file := filepath.Join(v.dir, "swap")
	if err := (step{Do: "write", Path: file, Bytes: 128 * mib}).Act(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "mkswap", file)
	v.sync(t)
	group, limit := memoryCgroup(t)
	run(t, "swapon", file)
	t.Cleanup(func() { run(t, "swapoff", file) })
	if err := os.WriteFile(limit, []byte(strconv.Itoa(32*mib)), 0); err != nil {
		t.Fatal(err)
	}
	a := play(t, step{Do: "enter", Path: group}, step{Do: "hold", Bytes: 64 * mib, N: 1}, step{Do: "pause"})
	tree := k.mustTrack(t, a)
	before := v.flows(t, k)
	a.next()
	a.paused()
	s := k.mustSnapshot(t, tree)
	got := s.Trees[0]
	if want := kilobytes(t, a.PID, "Swap"); got.SwapBytes == 0 || got.SwapBytes != want {
		t.Errorf("swap %d, want %d", got.SwapBytes, want)
	}
	if got.ReclaimStallNanos == 0 || s.Reclaim.State != record.State_OK {
		t.Errorf("stalled for %d ns, %v", got.ReclaimStallNanos, s.Reclaim)
	}
	// The program's own pages are dropped under pressure and read again from where they are; its memory is not among them.
	if got.DiskWriteBytes != 0 || got.CacheMissBytes != got.DiskReadBytes {
		t.Errorf("wrote %d and read %d bytes, of which %d into the page cache; the rest is swap", got.DiskWriteBytes, got.DiskReadBytes, got.CacheMissBytes)
	}
	if got.MajorFaults == 0 {
		t.Error("no major faults")
	}
	f := v.flows(t, k).since(before)
	out, in := f.write[bpf.BlockWriteClassCLASS_SWAP], f.read[bpf.BlockWriteClassCLASS_SWAP]
	if out < 16*mib || in < 16*mib {
		t.Errorf("swapped %d bytes out to the device and %d in", out, in)
	}
	a.end()
	v.conserved(t, k, before)
}

// memoryCgroup makes a cgroup, v1 or v2, and returns its list of processes and its limit.
func memoryCgroup(t *testing.T) (processes, limit string) {
	t.Helper()
	for _, hierarchy := range []struct{ root, limit string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}, {"/sys/fs/cgroup", "memory.max"},
	} {
		dir := filepath.Join(hierarchy.root, "prov4ml-test-"+strconv.Itoa(os.Getpid()))
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		t.Cleanup(func() {
			for range 100 { // processes that have exited leave with a delay
				if os.Remove(dir) == nil {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
			t.Errorf("%s stays", dir)
		})
		if _, err := os.Stat(filepath.Join(dir, hierarchy.limit)); err == nil {
			return filepath.Join(dir, "cgroup.procs"), filepath.Join(dir, hierarchy.limit)
		}
	}
	t.Fatal("no memory cgroups")
	return "", ""
}

// Each request of ours is in the histogram once.
func TestLatency(t *testing.T) {
	k := shareTestKernel(t)
	v := newVolume(t, "ext4", filepath.Join(t.TempDir(), "image"), 1, mkfsExt4)
	file := filepath.Join(v.dir, "a")
	if err := actor.Act([]step{{Do: "write", Path: file, Bytes: 16 * mib}, {Do: "drop", Path: file}}); err != nil {
		t.Fatal(err)
	}
	v.sync(t)
	a := play(t, step{Do: "read-direct", Path: file, Bytes: 16 * mib}, step{Do: "pause"}, step{Do: "write-direct", Path: file, Bytes: 16 * mib})
	tree := k.mustTrack(t, a)
	requests := func() (reads uint64) {
		text, err := os.ReadFile("/sys/block/" + filepath.Base(v.devices[0]) + "/stat")
		if err != nil {
			t.Fatal(err)
		}
		reads, err = strconv.ParseUint(strings.Fields(string(text))[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return reads
	}
	before := requests()
	a.next()
	a.paused()
	total := func(histogram [64]uint64) (all uint64) {
		for _, n := range histogram {
			all += n
		}
		return all
	}
	s := k.mustSnapshot(t, tree)
	got, want := total(s.Trees[0].ReadLatency), requests()-before
	// The device counts a request after it has told its reader.
	for range 100 {
		if got == want {
			break
		}
		time.Sleep(10 * time.Millisecond)
		want = requests() - before
	}
	if got != want || got == 0 {
		t.Errorf("%d requests in the histogram, want %d", got, want)
	}
	for bucket, n := range s.Trees[0].ReadLatency {
		if n > 0 && (bucket < 9 || bucket > 33) {
			t.Errorf("%d requests took 2^%d ns", n, bucket)
		}
	}
	if got := total(s.Trees[0].WriteLatency); got != 0 {
		t.Errorf("%d writes, want none", got)
	}
	a.end()
	if got := total(k.mustSnapshot(t, tree).Trees[0].WriteLatency); got == 0 {
		t.Error("no write in the histogram")
	}
}

// The map of dirty inodes comes back to what is dirty.
func TestSweep(t *testing.T) {
	k := openTestKernel(t)
	v := newVolume(t, "ext4", filepath.Join(t.TempDir(), "image"), 1, mkfsExt4)
	againstSync(t, 5, func() (wrong []string) {
		v.sync(t)
		const files = 200
		ours := map[uint64]bool{}
		for i := range files {
			file := filepath.Join(v.dir, strconv.Itoa(i))
			if err := (step{Do: "write", Path: file, Bytes: 4096}).Act(); err != nil {
				t.Fatal(err)
			}
			var stat unix.Stat_t
			if err := unix.Stat(file, &stat); err != nil {
				t.Fatal(err)
			}
			ours[stat.Ino] = true
		}
		check := func(when string, least, most int) {
			t.Helper()
			if _, err := k.sweep(); err != nil {
				t.Fatal(err)
			}
			known := 0
			var key uint64
			var owner bpf.DirtyInodeOwner
			for all := k.maps[bpf.DirtyMapInodes].Iterate(); all.Next(&key, &owner); {
				if ours[owner.Number] {
					known++
				}
			}
			if known < least || known > most {
				wrong = append(wrong, fmt.Sprintf("%d entries of %s, want %d to %d", known, when, least, most))
			}
		}
		// Other file systems may have inodes of the same numbers.
		const others = 20
		time.Sleep(1100 * time.Millisecond) // an entry younger than a second stays
		check("200 dirty files", files, files+others)
		for i := range files / 2 {
			if err := os.Remove(filepath.Join(v.dir, strconv.Itoa(i))); err != nil {
				t.Fatal(err)
			}
		}
		check("100 dirty files", files/2, files/2+others)
		v.sync(t)
		check("no dirty files", 0, others)
		return wrong
	})
}

func BenchmarkSnapshotOfOne(b *testing.B) {
	k, _, err := openKernel(nil, Config{})
	if err != nil {
		b.Fatal(err)
	}
	defer k.Close()
	stat, err := ReadStat("/proc", os.Getpid())
	if err != nil {
		b.Fatal(err)
	}
	tree, err := k.Track(stat.Process)
	if err != nil {
		b.Fatal(err)
	}
	var s Snapshot
	ids := []TreeID{tree.ID}
	b.ReportAllocs()
	for b.Loop() {
		if err := k.Snapshot(ids, nil, &s); err != nil {
			b.Fatal(err)
		}
	}
}

// A reading in which somebody may be counted twice changes nothing: the counters never go back, so that too much would stay.
func TestCountersStandStillWhenAReadingMayBeTooHigh(t *testing.T) {
	var known tree
	for _, read := range []struct {
		name  string
		now   uint64
		bound bool
		want  uint64
	}{
		{"first", 10, true, 10},
		{"too high", 30, false, 10},
		{"next", 20, true, 20},
		{"an exit is between two readings", 15, true, 20},
		{"a share taken back", ^uint64(0), true, 20},
		{"on", 25, true, 25},
	} {
		now := Counters{MinorFaults: read.now, IOReadBytes: read.now, CPUNanos: read.now}
		waits := Waits{RunQueueNanos: read.now}
		known.forward(&now, &waits, read.bound)
		if now.MinorFaults != read.want || now.IOReadBytes != read.want || now.CPUNanos != read.want || waits.RunQueueNanos != read.want {
			t.Errorf("%s: %+v %+v, want %d", read.name, now, waits, read.want)
		}
	}
}
