package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/prov4ml/agent/record"
)

// machine is a fixture: a procfs and a cgroup hierarchy, mounted where the test's directory is.
type machine struct {
	t    *testing.T
	root string
}

func newMachine(t *testing.T) machine { return machine{t, t.TempDir()} }

func (m machine) write(name, text string) {
	m.t.Helper()
	file := filepath.Join(m.root, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

func (m machine) copy(name, from string) {
	m.t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", from))
	if err != nil {
		m.t.Fatal(err)
	}
	m.write(name, string(text))
}

const hostPressure = "some avg10=0.00 avg60=0.00 avg300=0.00 total=30\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=20\n"

func (m machine) mounts(v1, v2 string) {
	m.write("proc/pressure/memory", hostPressure)
	var text strings.Builder
	text.WriteString("23 28 0:21 / /proc rw,relatime - proc proc rw\n")
	if v1 != "" {
		text.WriteString("30 25 0:26 / " + filepath.Join(m.root, "cpu") + " rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n")
		text.WriteString("31 25 0:27 " + v1 + " " + filepath.Join(m.root, "v1") + " rw shared:10 - cgroup cgroup rw,memory\n")
	}
	if v2 != "" {
		text.WriteString("32 25 0:28 " + v2 + " " + filepath.Join(m.root, "v2") + " rw - cgroup2 cgroup2 rw,nsdelegate\n")
	}
	m.write("proc/self/mountinfo", text.String())
}

func (m machine) read(pid int) Memory {
	return New(Config{ProcRoot: filepath.Join(m.root, "proc")}).Read(pid, nil)
}

func ok(n uint64) Value { return Value{Amount: n, State: record.State_OK} }

func same(t *testing.T, got, want Memory) {
	t.Helper()
	want.HostSomeMicros, want.HostFullMicros = ok(30), ok(20)
	if d := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Memory{})); d != "" {
		t.Error(d)
	}
}

func TestVersion2(t *testing.T) {
	m := newMachine(t)
	m.mounts("", "/")
	m.write("proc/7/cgroup", "0::/kubepods.slice/pod1.slice/cri-1.scope\n")
	dir := "v2/kubepods.slice/pod1.slice/cri-1.scope/"
	m.write(dir+"memory.current", "104857600\n")
	m.write(dir+"memory.peak", "209715200\n")
	m.write(dir+"memory.max", "1073741824\n")
	m.copy(dir+"memory.stat", "v2.stat")
	m.write(dir+"memory.pressure", "some avg10=0.00 avg60=1.20 avg300=0.35 total=1500000\nfull avg10=0.00 avg60=0.50 avg300=0.11 total=400000\n")
	m.write("v2/kubepods.slice/pod1.slice/memory.current", "104857601\n")
	m.write("v2/kubepods.slice/pod1.slice/memory.max", "max\n")
	same(t, m.read(7), Memory{
		State: record.State_OK, Path: "/kubepods.slice/pod1.slice/cri-1.scope",
		UsageBytes: ok(104857600), PeakBytes: ok(209715200), LimitBytes: ok(1 << 30),
		AnonBytes: ok(60952576), FileBytes: ok(31457280 - 4194304), ShmemBytes: ok(4194304), KernelBytes: ok(8445952),
		SomeMicros: ok(1500000), FullMicros: ok(400000),
	})
}

func TestVersion2OfAnOldKernelSaysWhatIsMissing(t *testing.T) {
	m := newMachine(t)
	m.mounts("", "/")
	m.write("proc/7/cgroup", "0::/user.slice\n")
	m.write("v2/user.slice/memory.current", "4096\n")
	m.write("v2/user.slice/memory.max", "max\n")
	m.write("v2/user.slice/memory.stat", "anon 4096\nfile 0\nshmem 0\n")
	missing := func(why string) Value { return Value{State: record.State_UNSUPPORTED, Reason: why} }
	psi := missing("the kernel runs without PSI (boot with psi=1)")
	same(t, m.read(7), Memory{
		State: record.State_OK, Path: "/user.slice",
		UsageBytes: ok(4096), PeakBytes: missing("memory.peak is there from kernel 5.19 on"),
		LimitBytes: Value{State: record.State_ABSENT, Reason: "the cgroup has no limit"},
		AnonBytes:  ok(4096), FileBytes: ok(0), ShmemBytes: ok(0), KernelBytes: missing("this kernel's memory.stat has no kernel"),
		SomeMicros: psi, FullMicros: psi,
	})
}

func TestVersion1(t *testing.T) {
	m := newMachine(t)
	m.mounts("/", "/") // hybrid: an empty v2 beside it
	m.write("proc/7/cgroup", "9:name=systemd:/x\n4:memory:/slurm/job_1/step_0/task_0\n1:cpu,cpuacct:/\n0::/x\n")
	for dir, limit := range map[string]string{
		"v1/slurm/job_1/step_0/task_0/": "9223372036854771712", "v1/slurm/job_1/step_0/": "9223372036854771712",
		"v1/slurm/job_1/": "67108864", "v1/slurm/": "9223372036854771712",
	} {
		m.write(dir+"memory.limit_in_bytes", limit+"\n")
		m.write(dir+"memory.usage_in_bytes", "66060288\n")
		m.write(dir+"memory.max_usage_in_bytes", "67108864\n")
		m.write(dir+"memory.kmem.usage_in_bytes", "1048576\n")
		m.copy(dir+"memory.stat", "v1.stat")
	}
	psi := Value{State: record.State_UNSUPPORTED, Reason: "cgroup v1 has no PSI of a cgroup"}
	same(t, m.read(7), Memory{
		State: record.State_OK, Path: "/slurm/job_1", // where the limit stands
		UsageBytes: ok(66060288), PeakBytes: ok(67108864), LimitBytes: ok(67108864),
		AnonBytes: ok(41943040), FileBytes: ok(20971520 - 8388608), ShmemBytes: ok(8388608), KernelBytes: ok(1048576),
		SomeMicros: psi, FullMicros: psi,
	})
}

func TestTheSmallestLimitCountsAndTheInnermostOfEquals(t *testing.T) {
	m := newMachine(t)
	m.mounts("", "/")
	m.write("proc/7/cgroup", "0::/a/b/c\n")
	for dir, limit := range map[string]string{"a": "100", "a/b": "50", "a/b/c": "50"} {
		m.write("v2/"+dir+"/memory.current", "1\n")
		m.write("v2/"+dir+"/memory.max", limit+"\n")
	}
	if got := m.read(7); got.Path != "/a/b/c" || got.LimitBytes != ok(50) {
		t.Errorf("%s with limit %+v", got.Path, got.LimitBytes)
	}
	m.write("v2/a/memory.max", "10\n")
	if got := m.read(7); got.Path != "/a" || got.LimitBytes != ok(10) {
		t.Errorf("%s with limit %+v", got.Path, got.LimitBytes)
	}
}

func TestAPathIsAText(t *testing.T) {
	m := newMachine(t)
	m.mounts("", "/")
	m.write("proc/7/cgroup", "0::/job\xff\n")
	m.write("v2/job\xff/memory.current", "3\n")
	m.write("v2/job\xff/memory.max", "max\n")
	if got := m.read(7); got.Path != "/job\uFFFD" || got.UsageBytes != ok(3) {
		t.Errorf("%q with %+v", got.Path, got.UsageBytes)
	}
}

func TestWhatIsNotThereHasAReason(t *testing.T) {
	for _, row := range []struct {
		name, cgroup, v1, v2, want string
	}{
		{"root cgroup", "0::/\n", "", "/", "root cgroup"},
		{"outside the namespace", "0::/../../kubepods/pod1/c1\n", "", "/", "cgroup namespace"},
		{"no controller", "1:cpu:/x\n", "/", "", "not accounted"},
		{"v1 not mounted", "4:memory:/x\n", "", "/", "not mounted"},
		{"outside the mount", "4:memory:/x\n", "/docker/1", "", "outside what is mounted"},
		{"gone", "0::/x\n", "", "/", "gone"},
		{"nonsense", "::::\n\x00\n", "/", "/", "not accounted"},
	} {
		t.Run(row.name, func(t *testing.T) {
			m := newMachine(t)
			m.mounts(row.v1, row.v2)
			m.write("proc/7/cgroup", row.cgroup)
			if got := m.read(7); got.State != record.State_ABSENT || !strings.Contains(got.Reason, row.want) {
				t.Errorf("%v %q, want a reason with %q", got.State, got.Reason, row.want)
			}
		})
	}
	m := newMachine(t)
	if got := m.read(8); got.State != record.State_ABSENT || got.Reason == "" {
		t.Errorf("no such process: %v %q", got.State, got.Reason)
	}
}

func TestAMountOfAPartIsFollowed(t *testing.T) {
	m := newMachine(t)
	m.mounts("/docker/1", "")
	m.write("proc/7/cgroup", "4:memory:/docker/1/inner\n")
	m.write("v1/inner/memory.usage_in_bytes", "5\n")
	if got := m.read(7); got.State != record.State_OK || got.Path != "/inner" || got.UsageBytes != ok(5) {
		t.Errorf("%+v", got)
	}
}

func TestAYoungReadingIsHandedOutAgain(t *testing.T) {
	m := newMachine(t)
	m.mounts("", "/")
	m.write("proc/7/cgroup", "0::/a\n")
	m.write("v2/a/memory.current", "1\n")
	for _, row := range []struct {
		age  int
		want uint64
	}{{int(1e12), 1}, {-1, 2}} {
		m.write("v2/a/memory.current", "1\n")
		p := New(Config{ProcRoot: filepath.Join(m.root, "proc"), MaxAge: 1e12})
		if row.age < 0 {
			p = New(Config{ProcRoot: filepath.Join(m.root, "proc"), MaxAge: -1})
		}
		first := p.Read(7, nil)
		m.write("v2/a/memory.current", "2\n")
		if got := p.Read(7, &first); got.UsageBytes != ok(row.want) {
			t.Errorf("max age %d: %+v, want %d", row.age, got.UsageBytes, row.want)
		}
		if got := p.Read(8, &first); got.State == record.State_OK {
			t.Errorf("another process got %+v", got)
		}
	}
}

func TestWhatIsDearIsReadLessOften(t *testing.T) {
	m := newMachine(t)
	m.mounts("", "/")
	m.write("proc/7/cgroup", "0::/a\n")
	set := func(cgroup string, usage, anon, limit int) {
		m.write("v2/"+cgroup+"/memory.current", fmt.Sprintln(usage))
		m.write("v2/"+cgroup+"/memory.stat", fmt.Sprintln("anon", anon))
		m.write("v2/"+cgroup+"/memory.max", fmt.Sprintln(limit))
	}
	const maxAge = 10 * time.Millisecond
	p := New(Config{ProcRoot: filepath.Join(m.root, "proc"), MaxAge: maxAge})
	now := time.Now()
	p.now = func() time.Time { return now }
	check := func(got Memory, path string, usage, anon, limit uint64) {
		t.Helper()
		if got.Path != path || got.UsageBytes != ok(usage) || got.AnonBytes != ok(anon) || got.LimitBytes != ok(limit) {
			t.Errorf("got %s: usage %v, anon %v, limit %v; want %s %d %d %d",
				got.Path, got.UsageBytes, got.AnonBytes, got.LimitBytes, path, usage, anon, limit)
		}
	}
	set("a", 1, 1, 10)
	set("b", 5, 5, 50)
	last := p.Read(7, nil)
	check(last, "/a", 1, 1, 10)

	set("a", 2, 2, 20)
	check(p.Read(7, &last), "/a", 1, 1, 10)

	now = now.Add(maxAge)
	last = p.Read(7, &last)
	check(last, "/a", 2, 1, 10)

	// Another process of the cgroup shares what was found, and reads the usage by itself.
	m.write("proc/8/cgroup", "0::/a\n")
	check(p.Read(8, &Memory{}), "/a", 2, 1, 10)

	now = now.Add(slower * maxAge)
	last = p.Read(7, &last)
	check(last, "/a", 2, 2, 20)

	// A process that moved is noticed when its cgroup is looked up again.
	m.write("proc/7/cgroup", "0::/b\n")
	now = now.Add(maxAge)
	last = p.Read(7, &last)
	check(last, "/a", 2, 2, 20)
	now = now.Add(slower * maxAge)
	last = p.Read(7, &last)
	check(last, "/b", 5, 5, 50)

	// A cgroup that is gone is not waited for. The kernel answers ENODEV for its open files, which a regular file does not.
	last.home.open.close()
	m.write("proc/7/cgroup", "0::/a\n")
	if err := os.RemoveAll(filepath.Join(m.root, "v2/b")); err != nil {
		t.Fatal(err)
	}
	set("a", 3, 3, 30)
	now = now.Add(maxAge)
	last = p.Read(7, &last)
	check(last, "/a", 3, 3, 30)

	// Nor is what was known of one that is gone taken for true: the one around it is found at once.
	set("a/b", 9, 9, 5)
	m.write("proc/9/cgroup", "0::/a/b\n")
	inside := p.Read(9, nil)
	if inside.Path != "/a/b" {
		t.Errorf("in %s, want /a/b", inside.Path)
	}
	if err := os.RemoveAll(filepath.Join(m.root, "v2/a/b")); err != nil {
		t.Fatal(err)
	}
	inside.home.open.close()
	now = now.Add(maxAge)
	check(p.Read(9, &inside), "/a", 3, 3, 30)

	// What fills a cgroup is read anew after a kill.
	set("a", 4, 4, 40)
	check(p.Read(8, nil), "/a", 4, 4, 40)
	set("a", 3, 3, 30)
	now = now.Add(slower * maxAge)
	last = p.Read(7, &last)

	// A hierarchy that was mounted elsewhere is found once nothing is where it was.
	if err := os.Rename(filepath.Join(m.root, "v2"), filepath.Join(m.root, "elsewhere")); err != nil {
		t.Fatal(err)
	}
	last.home.open.close()
	m.write("proc/self/mountinfo", "32 25 0:28 / "+filepath.Join(m.root, "elsewhere")+" rw - cgroup2 cgroup2 rw\n")
	now = now.Add(slower * maxAge)
	if got := p.Read(7, &last); got.State != record.State_ABSENT {
		t.Errorf("got %+v, want none", got)
	}
	now = now.Add(slower * maxAge)
	check(p.Read(7, nil), "/a", 3, 3, 30)
}

// What this machine says of this process is what its files say.
func TestLive(t *testing.T) {
	got := New(Config{}).Read(os.Getpid(), nil)
	if got.State != record.State_OK {
		if got.Reason == "" {
			t.Error("absent without a reason")
		}
		return
	}
	if got.UsageBytes.State != record.State_OK || got.UsageBytes.Amount == 0 || got.AnonBytes.Amount == 0 {
		t.Errorf("%+v", got)
	}
}

func TestAnExitedProcessHasTheCgroupThatItHad(t *testing.T) {
	m := newMachine(t)
	m.mounts("", "/")
	m.write("proc/7/cgroup", "0::/a\n")
	m.write("v2/a/memory.current", "1\n")
	p := New(Config{ProcRoot: filepath.Join(m.root, "proc"), MaxAge: -1})
	first := p.Read(7, nil)
	if err := os.RemoveAll(filepath.Join(m.root, "proc/7")); err != nil {
		t.Fatal(err)
	}
	m.write("v2/a/memory.current", "2\n")
	second := p.Read(7, &first)
	if third := p.Read(7, &second); third.UsageBytes != ok(2) || third.Path != "/a" {
		t.Errorf("%+v", third)
	}
}

func FuzzPressure(f *testing.F) {
	f.Add("some avg10=0.00 avg60=0.00 avg300=0.00 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n")
	f.Add("some total=" + strconv.FormatUint(1<<63, 10))
	f.Fuzz(func(t *testing.T, text string) {
		some, full := parsePressure(text)
		for _, v := range []Value{some, full} {
			if v.State != record.State_OK && v.Reason == "" {
				t.Error("no reason")
			}
		}
	})
}
