package runs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/prov4ml/agent/probes/cgroup"
	"github.com/prov4ml/agent/probes/process"
	"github.com/prov4ml/agent/record"
)

func TestAKillIsOnTheNextRecordOfEveryTreeAroundAndEndsItsRunWithAnError(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Settle = -1 })
	outer, _ := sleeper(t)
	b.hello(t, outer, Description{})
	inner, _ := sleeper(t)
	b.probe.outside[inner.PID] = 1
	b.hello(t, inner, Description{})
	other, _ := sleeper(t)
	b.hello(t, other, Description{})
	b.call(t, outer, Call{})
	b.call(t, inner, Call{})
	b.call(t, other, Call{})

	b.killed(process.Kill{Tree: 2, PID: 1 << 22, Name: "python", Time: time.Now(), AnonBytes: 5 << 20})
	for _, row := range []struct {
		who  Caller
		want bool
	}{{outer, true}, {inner, true}, {other, false}} {
		first, second := b.call(t, row.who, Call{}), b.call(t, row.who, Call{})
		if got := len(first.Events) == 1 && first.Events[0].Name == record.EventOOMKill; got != row.want {
			t.Errorf("pid %d: events %v", row.who.PID, first.Events)
		}
		if len(second.Events) != 0 {
			t.Errorf("told again: %v", second.Events)
		}
		if row.want {
			named := byName(first.Events[0].Attributes)
			if named[record.OOMProcessName].GetText() != "python" || named[record.OOMProcessAnonBytes].GetInteger() != 5<<20 {
				t.Errorf("%v", first.Events[0])
			}
		}
		if first.Error != "" {
			t.Errorf("a log call has the error %q", first.Error)
		}
		if _, err := b.Describe(t.Context(), row.who, Description{End: true}); err != nil {
			t.Fatal(err)
		}
		records := b.store.all()
		end := records[len(records)-1]
		if end.Function != record.Function_RUN_END || (end.Error != "") != row.want || row.want && !strings.Contains(end.Error, "(python)") {
			t.Errorf("%v ends with %q", end.Function, end.Error)
		}
	}
}

// The number of a victim is one of the first pid namespace: where it is another process's here, nothing is read of that.
func TestAKillReadsOnlyItsVictim(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	b.hello(t, c, Description{})
	for _, row := range []struct {
		name, want string
		known      bool
	}{{"sleep", "sleep", true}, {"another", "another", false}, {"\xe8\xae\xad\xe7", "训\uFFFD", false}} {
		b.killed(process.Kill{Tree: 1, PID: c.PID, Name: row.name, Time: time.Now()})
		rec := b.call(t, c, Call{})
		if _, err := proto.Marshal(rec); err != nil || len(rec.Events) != 1 {
			t.Fatalf("%q: %v, %v", row.name, err, rec.Events)
		}
		named := byName(rec.Events[0].Attributes)
		if got := named[record.OOMProcessName].GetText(); got != row.want {
			t.Errorf("name %q, want %q", got, row.want)
		}
		if read := named[record.OOMDevShmSizeBytes] != nil; read != row.known {
			t.Errorf("%q: something was read of the process: %v", row.name, read)
		}
	}
}

func TestFillingNamesTheLargestPart(t *testing.T) {
	ok := func(n uint64) cgroup.Value { return cgroup.Value{Amount: n, State: record.State_OK} }
	m := cgroup.Memory{
		State: record.State_OK, Path: "/job", UsageBytes: ok(100), LimitBytes: ok(100),
		AnonBytes: ok(20), FileBytes: ok(5), ShmemBytes: ok(70), KernelBytes: cgroup.Value{State: record.State_UNSUPPORTED},
	}
	readings, largest := filling(&m)
	named := byName(readings)
	if largest != "shared memory" || named[record.OOMFilledBy].GetText() != largest || named[record.OOMCgroupShmemBytes].GetInteger() != 70 {
		t.Errorf("%q, %v", largest, readings)
	}
	if named[record.OOMCgroupKernelBytes] != nil {
		t.Error("an unknown part has a value")
	}
}

func TestSharedMemoryOfThisProcess(t *testing.T) {
	file := filepath.Join("/dev/shm", "prov4ml-test")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(file)
	used, size, ok := sharedMemory("/proc", os.Getpid())
	if !ok || used < 1<<20 || size < used {
		t.Errorf("%d of %d, %v", used, size, ok)
	}
}
