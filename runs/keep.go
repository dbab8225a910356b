package runs

import (
	"fmt"
	"hash/fnv"
	"reflect"

	"google.golang.org/protobuf/proto"

	"github.com/prov4ml/agent/probes/cgroup"
	"github.com/prov4ml/agent/probes/host"
	"github.com/prov4ml/agent/probes/process"
	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/runs/state"
)

// What an agent leaves to the next one so that no window has a gap, in two places. The state of a process, written with each record,
// has what the counters stood at where its windows start. The note of a tree, kept in the kernel with the counters themselves, has
// what changes without a record: where the first windows start, and what trees inside counted that are gone.

// words are the 64-bit words of a struct made of them, in the order of its fields.
func words(of reflect.Value, each func(reflect.Value)) {
	switch of.Kind() {
	case reflect.Struct:
		for i := range of.NumField() {
			words(of.Field(i), each)
		}
	case reflect.Array:
		for i := range of.Len() {
			words(of.Index(i), each)
		}
	default:
		each(of)
	}
}

func packWords(of any) []uint64 {
	packed := make([]uint64, 0, 192) // more than any of them has
	words(reflect.ValueOf(of).Elem(), func(w reflect.Value) { packed = append(packed, w.Uint()) })
	return packed
}

func unpackWords(packed []uint64, into any) bool {
	words(reflect.ValueOf(into).Elem(), func(w reflect.Value) {
		if len(packed) == 0 {
			into = nil
			return
		}
		w.SetUint(packed[0])
		packed = packed[1:]
	})
	return into != nil && len(packed) == 0
}

// sampleLayout names the words of a sample: another agent may count other things.
func sampleLayout() uint64 {
	names := fnv.New64a()
	for _, of := range [...]reflect.Type{
		reflect.TypeFor[process.Counters](), reflect.TypeFor[process.Waits](), reflect.TypeFor[process.NodeCounters](),
	} {
		for i := range of.NumField() {
			fmt.Fprintln(names, of.Field(i).Name, of.Field(i).Type)
		}
	}
	return names.Sum64()
}

// pack gives a sample as it is kept; nil when it is not known.
func (s *sample) pack(layout uint64) *state.Sample {
	if !s.known {
		return nil
	}
	out := &state.Sample{
		Layout: layout, Counters: packWords(&s.tree), Waits: packWords(&s.waits), Node: packWords(&s.node), Loss: s.loss,
		Cgroup: s.cgroup.Path, CgroupKnown: s.cgroup.State == record.State_OK,
		CgroupSomeMicros: packValue(&s.cgroup.SomeMicros), CgroupFullMicros: packValue(&s.cgroup.FullMicros),
		HostSomeMicros: packValue(&s.cgroup.HostSomeMicros), HostFullMicros: packValue(&s.cgroup.HostFullMicros),
	}
	out.CpuBusy, out.CpuTotal, out.CpuKnown = s.cpu.Seconds()
	return out
}

// unpackSample returns a sample that is not known when it cannot be read.
func unpackSample(in *state.Sample, layout uint64) sample {
	var s sample
	if in == nil || in.GetLayout() != layout || !unpackWords(in.GetCounters(), &s.tree) ||
		!unpackWords(in.GetWaits(), &s.waits) || !unpackWords(in.GetNode(), &s.node) {
		return sample{}
	}
	s.loss, s.cpu = in.GetLoss(), host.At(in.GetCpuBusy(), in.GetCpuTotal(), in.GetCpuKnown())
	s.cgroup = cgroup.Memory{
		Path: in.GetCgroup(), SomeMicros: unpackValue(in.CgroupSomeMicros), FullMicros: unpackValue(in.CgroupFullMicros),
		HostSomeMicros: unpackValue(in.HostSomeMicros), HostFullMicros: unpackValue(in.HostFullMicros),
	}
	if in.GetCgroupKnown() {
		s.cgroup.State = record.State_OK
	}
	s.known = true
	return s
}

func packValue(v *cgroup.Value) *uint64 {
	if v.State != record.State_OK {
		return nil
	}
	amount := v.Amount
	return &amount
}

func unpackValue(amount *uint64) cgroup.Value {
	if amount == nil {
		return cgroup.Value{}
	}
	return cgroup.Value{State: record.State_OK, Amount: *amount}
}

// packNow gives what was measured last as the base of windows; nil when it ends with this agent.
func (s *subject) packNow() *state.Sample {
	if s.tree == nil || s.tree.set == 0 {
		return nil
	}
	return s.now.pack(s.layout)
}

// keep writes the note of a tree. Without it the next agent's first window of the tree has a gap, so an error is counted only.
func (t *Tracker) keep(of *tree) {
	t.forest.mu.RLock()
	parent := process.TreeID(0)
	if of.parent != nil {
		parent = of.parent.id
	}
	var note []byte
	if of.set != 0 {
		folded := sample{tree: of.folded, known: true}
		note, _ = proto.Marshal(&state.Note{
			Start: of.start.base, StartUnixNanos: of.start.unixNanos, Hello: of.start.hello,
			Folded: folded.pack(t.layout), Folding: uint32(of.folding),
		})
	}
	t.forest.mu.RUnlock()
	if err := t.probe.Note(of.id, parent, note); err != nil {
		t.counters.unkept.Add(1)
	}
}
