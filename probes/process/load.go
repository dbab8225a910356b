package process

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/prov4ml/agent/bpf"
	"github.com/prov4ml/agent/probes"
	"github.com/prov4ml/agent/record"
)

// group is a group of values of a Snapshot.
type group uint8

const (
	groupDisk group = iota
	groupDirty
	groupLatency
	groupTask
	groupMemory
	groupReclaim
	groupWait
	groupKills
	// groupTrees is none of a Snapshot's, but what all of them need.
	groupTrees
	groups
)

// program is one BPF program and what depends on it. Where kernels differ there are several variants for one event, and the
// kernel's own BTF decides (fits).
type program struct {
	label string
	load  func() (*ebpf.CollectionSpec, error)
	name  string
	// event is the tracepoint; empty for iterators and programs that the agent runs.
	event string
	// fits says whether this variant is written for the prototype of the event; nil = for any.
	fits func(*prototypes) bool
	// fallback is the program that is loaded instead when the kernel refuses this one; empty = none.
	fallback string
	// needed are the groups that cannot be had without it.
	needed []group
}

// objects are the compiled sources: in one of two sets, of which early is for kernels without bpf_loop (before 5.17).
type objects struct {
	early                                                           bool
	lineage, adopt, live, dirty, block, latency, reclaim, wait, oom func() (*ebpf.CollectionSpec, error)
}

func objectsFor(known *prototypes) objects {
	if known.hasHelper("BPF_FUNC_loop") {
		return objects{
			lineage: bpf.LoadLineage, adopt: bpf.LoadAdopt, live: bpf.LoadLive, dirty: bpf.LoadDirty,
			block: bpf.LoadBlock, latency: bpf.LoadLatency, reclaim: bpf.LoadReclaim, wait: bpf.LoadWait, oom: bpf.LoadOom,
		}
	}
	return objects{
		early:   true,
		lineage: bpf.LoadLineageEarly, adopt: bpf.LoadAdoptEarly, live: bpf.LoadLiveEarly, dirty: bpf.LoadDirtyEarly,
		block: bpf.LoadBlockEarly, latency: bpf.LoadLatencyEarly, reclaim: bpf.LoadReclaimEarly, wait: bpf.LoadWaitEarly, oom: bpf.LoadOomEarly,
	}
}

// programs lists what to load, in this order.
func programs(from objects, known *prototypes) []program {
	all := []group{groupDisk, groupDirty, groupLatency, groupTask, groupMemory, groupReclaim, groupWait, groupKills, groupTrees}
	reclaim, latency := []group{groupReclaim}, []group{groupLatency}
	wait, kills := []group{groupWait}, []group{groupKills}
	// takes: the event's arguments start with pointers to these structs. Not given: the program fits any.
	takes := func(event string, structs ...string) func(*prototypes) bool {
		return func(known *prototypes) bool { return known.takes(event, structs...) }
	}
	// Before 6.9 the event of a kill has a number and no task.
	passesPID := func(known *prototypes) bool {
		return known.has("mark_victim") && !known.takes("mark_victim", "task_struct")
	}
	list := []program{
		{label: "process free", load: from.lineage, name: bpf.LineageProgLineageFree, event: "sched_process_free", needed: all},
		{label: "process exit", load: from.lineage, name: bpf.LineageProgLineageExit, event: "sched_process_exit", needed: all},
	}
	if !from.early { // those know a process by what no exec changes
		list = append(list, program{
			label: "process exec", load: from.lineage, name: bpf.LineageProgLineageExec, event: "sched_process_exec", needed: all,
		})
	}
	list = append(list, []program{
		// After the others: a tree grows only when its ends are seen too.
		{label: "process fork", load: from.lineage, name: bpf.LineageProgLineageFork, event: "task_newtask", needed: all},
		{label: "present processes", load: from.adopt, name: bpf.AdoptProgAdopt, needed: all},
	}...)
	if known.countsMemoryPerCPU() {
		list = append(list, program{label: "per-CPU counters", load: from.live, name: bpf.LiveProgLearnOffsets, needed: []group{groupMemory}})
	}
	live := program{
		label: "task counters and memory", load: from.live, name: bpf.LiveProgReadLive, fallback: bpf.LiveProgWalkLive,
		needed: []group{groupTask, groupMemory},
	}
	if from.early {
		live.name, live.fallback = live.fallback, ""
	}
	return append(list, []program{
		live,
		{label: "direct reclaim", load: from.reclaim, name: bpf.ReclaimProgDirectReclaimBegin, event: "mm_vmscan_direct_reclaim_begin", needed: reclaim},
		{label: "direct reclaim", load: from.reclaim, name: bpf.ReclaimProgDirectReclaimEnd, event: "mm_vmscan_direct_reclaim_end", needed: reclaim},
		{label: "cgroup reclaim", load: from.reclaim, name: bpf.ReclaimProgMemcgReclaimBegin, event: "mm_vmscan_memcg_reclaim_begin", needed: reclaim},
		{label: "cgroup reclaim", load: from.reclaim, name: bpf.ReclaimProgMemcgReclaimEnd, event: "mm_vmscan_memcg_reclaim_end", needed: reclaim},
		// Ends first: a beginning without an end would stay in the map.
		{label: "wait for a disk", load: from.wait, name: bpf.WaitProgDiskWaitEnd, event: "sched_wakeup", needed: wait},
		{label: "wait for a disk", load: from.wait, name: bpf.WaitProgDiskWaitBegin, event: "sched_switch", needed: wait},
		{
			label: "out-of-memory kills", load: from.oom, name: bpf.OomProgOomVictim, event: "mark_victim",
			fits: takes("mark_victim", "task_struct"), needed: kills,
		},
		{
			label: "out-of-memory kills", load: from.oom, name: bpf.OomProgOomVictimPid, event: "mark_victim",
			fits: passesPID, needed: kills,
		},
		{
			label: "out-of-memory kills", load: from.oom, name: bpf.OomProgOomExit, event: "sched_process_exit",
			fits: passesPID, needed: kills,
		},
		{label: "owners of clean files", load: from.dirty, name: bpf.DirtyProgSweepInodes},
		{label: "owners of clean pages", load: from.dirty, name: bpf.DirtyProgSweepPages},
		{
			label: "dirty pages", load: from.dirty, name: bpf.DirtyProgDirtyFolio, event: "writeback_dirty_folio",
			fits: takes("writeback_dirty_folio", "folio"), needed: []group{groupDisk, groupDirty},
		},
		{
			label: "dirty pages", load: from.dirty, name: bpf.DirtyProgDirtyPage, event: "writeback_dirty_page",
			fits: takes("writeback_dirty_page", "page"), needed: []group{groupDisk, groupDirty},
		},
		// Latency before the block program, which notes the bios for it.
		{
			label: "request completion", load: from.latency, name: bpf.LatencyProgRequestComplete, event: "block_rq_complete",
			fits: takes("block_rq_complete", "request"), needed: latency,
		},
		{
			label: "request split", load: from.latency, name: bpf.LatencyProgBioSplit, event: "block_split",
			fits: takes("block_split", "bio"), needed: latency,
		},
		{
			label: "request split", load: from.latency, name: bpf.LatencyProgBioSplitQueue, event: "block_split",
			fits: takes("block_split", "request_queue", "bio"), needed: latency,
		},
		{
			label: "request issue", load: from.latency, name: bpf.LatencyProgRequestIssue, event: "block_rq_issue",
			fits: takes("block_rq_issue", "request"), needed: latency,
		},
		{
			label: "request issue", load: from.latency, name: bpf.LatencyProgRequestIssueQueue, event: "block_rq_issue",
			fits: takes("block_rq_issue", "request_queue", "request"), needed: latency,
		},
		{
			label: "block I/O", load: from.block, name: bpf.BlockProgBlockQueue, event: "block_bio_queue",
			fits: takes("block_bio_queue", "bio"), needed: []group{groupDisk, groupDirty},
		},
		{
			label: "block I/O", load: from.block, name: bpf.BlockProgBlockQueueQueue, event: "block_bio_queue",
			fits: takes("block_bio_queue", "request_queue", "bio"), needed: []group{groupDisk, groupDirty},
		},
	}...)
}

// prototypes answers from the kernel's BTF what a tracepoint passes: the typedef btf_trace_NAME is a pointer to its function.
type prototypes struct{ kernel *btf.Spec }

func (p *prototypes) function(event string) *btf.FuncProto {
	var typedef *btf.Typedef
	if p.kernel == nil || p.kernel.TypeByName("btf_trace_"+event, &typedef) != nil {
		return nil
	}
	pointer, ok := typedef.Type.(*btf.Pointer)
	if !ok {
		return nil
	}
	function, _ := pointer.Target.(*btf.FuncProto)
	return function
}

// hasHelper says whether programs may call this function, by its name in enum bpf_func_id.
func (p *prototypes) hasHelper(name string) bool {
	var helpers *btf.Enum
	if p.kernel == nil || p.kernel.TypeByName("bpf_func_id", &helpers) != nil {
		return false
	}
	for _, value := range helpers.Values {
		if value.Name == name {
			return true
		}
	}
	return false
}

// countsMemoryPerCPU says whether the RSS counters are per-CPU ones (6.2).
func (p *prototypes) countsMemoryPerCPU() bool {
	var mm *btf.Struct
	if p.kernel == nil || p.kernel.TypeByName("mm_struct", &mm) != nil {
		return false
	}
	// Its fields are in an unnamed struct, since the kernel lays the whole out with a tail.
	for members := mm.Members; len(members) > 0; {
		var inner []btf.Member
		for _, member := range members {
			switch t := btf.UnderlyingType(member.Type).(type) {
			case *btf.Array:
				if member.Name == "rss_stat" {
					element, ok := btf.UnderlyingType(t.Type).(*btf.Struct)
					return ok && element.Name == "percpu_counter"
				}
			case *btf.Struct:
				if member.Name == "" {
					inner = append(inner, t.Members...)
				}
			}
		}
		members = inner
	}
	return false
}

func (p *prototypes) has(event string) bool { return p.function(event) != nil }

// takes says whether the event's arguments start with pointers to these structs.
func (p *prototypes) takes(event string, structs ...string) bool {
	function := p.function(event)
	if function == nil || len(function.Params) < 1+len(structs) {
		return false
	}
	for i, name := range structs {
		// The first parameter is the registration's data.
		pointer, ok := btf.UnderlyingType(function.Params[1+i].Type).(*btf.Pointer)
		if !ok {
			return false
		}
		target, ok := btf.UnderlyingType(pointer.Target).(*btf.Struct)
		if !ok || target.Name != name {
			return false
		}
	}
	return true
}

// loaded is everything of ours in the kernel.
type loaded struct {
	maps     map[string]*ebpf.Map
	programs map[string]*ebpf.Program
	// links by the name of the program.
	links  map[string]link.Link
	cache  *btf.Cache
	cpus   int
	status []probes.Status
	// reasons of the groups that cannot be had; empty = can.
	reasons [groups]string

	// heartbeatLimit is how long the programs count without the agent; 0 = they end with it.
	heartbeatLimit time.Duration
	// resuming says that maps and links were taken over. unlike: what loads now is not what loaded then.
	resuming, unlike bool
}

// load puts each program into the kernel and attaches it. A program that fails leaves a line in status and its groups without eBPF;
// nothing else. refuse, if not nil, lets a program fail by its name. With left, it goes on with maps and attached programs that are
// there already.
func load(refuse func(name string) error, heartbeatLimit time.Duration, left *taken) *loaded {
	l := &loaded{
		maps: map[string]*ebpf.Map{}, programs: map[string]*ebpf.Program{}, links: map[string]link.Link{}, cache: btf.NewCache(),
		heartbeatLimit: heartbeatLimit,
	}
	if left != nil {
		l.maps, l.links, l.resuming = left.maps, left.links, true
	}
	if lacking := missingCapabilities(); lacking != "" {
		l.refuse(fmt.Errorf("the agent lacks %s: %w", lacking, unix.EPERM))
		return l
	}
	kernel, err := l.cache.Kernel()
	if err != nil {
		l.refuse(fmt.Errorf("read kernel BTF: %w", err))
		return l
	}
	if err := raiseMemlock(); err != nil {
		l.refuse(err)
		return l
	}
	if l.cpus, err = ebpf.PossibleCPU(); err != nil {
		l.refuse(fmt.Errorf("count CPUs: %w", err))
		return l
	}
	known := &prototypes{kernel}
	all := programs(objectsFor(known), known)
	for i, p := range all {
		switch {
		case p.fits == nil || p.fits(known):
			if p.event != "" && !known.has(p.event) {
				l.report(p, fmt.Errorf("tracepoint %s: %w", p.event, ErrUnsupported))
				continue
			}
			err := l.tryToAdd(p, refuse)
			if err != nil && p.fallback != "" {
				p.name = p.fallback
				if l.tryToAdd(p, refuse) == nil {
					err = nil
				}
			}
			l.report(p, err)
		case !l.mentioned(p.label) && (i+1 == len(all) || all[i+1].label != p.label):
			// The last variant, and none has fitted.
			l.report(p, fmt.Errorf("arguments of tracepoint %s: %w", p.event, ErrUnsupported))
		}
	}
	return l
}

// mentioned says whether a line with this label has been reported.
func (l *loaded) mentioned(label string) bool {
	for i := range l.status {
		if l.status[i].Name == label || strings.HasPrefix(l.status[i].Name, label+" (") {
			return true
		}
	}
	return false
}

// refuse reports that nothing can be loaded.
func (l *loaded) refuse(err error) {
	nothing := &prototypes{}
	for _, p := range programs(objectsFor(nothing), nothing) {
		if p.fits == nil || !l.mentioned(p.label) {
			l.report(p, err)
		}
	}
}

func (l *loaded) report(p program, err error) {
	line := probes.Status{Name: p.label, OK: err == nil, Source: record.Source_EBPF}
	if p.event != "" {
		line.Name += " (" + p.event + ")"
	}
	if err != nil {
		line.Source = record.Source_PROCFS
		line.Reason, line.Cure = reasonOf(err), cureOf(err)
		for _, g := range p.needed {
			if l.reasons[g] == "" {
				l.reasons[g] = line.Name + ": " + line.Reason
			}
		}
	}
	l.status = append(l.status, line)
}

func (l *loaded) tryToAdd(p program, refuse func(name string) error) error {
	if refuse != nil {
		if err := refuse(p.name); err != nil {
			return err
		}
	}
	return l.add(p)
}

// add loads one program, with the maps that the ones before it made, and attaches it.
func (l *loaded) add(p program) error {
	if p.event != "" && l.resuming {
		if l.links[p.name] != nil {
			return nil // attached, and counting
		}
		defer func() { l.unlike = l.unlike || l.links[p.name] != nil }()
	}
	spec, err := p.load()
	if err != nil {
		return fmt.Errorf("read object: %w", err)
	}
	for name := range spec.Programs {
		if name != p.name {
			delete(spec.Programs, name)
		}
	}
	if len(spec.Programs) == 0 {
		return fmt.Errorf("no program %s for this kernel: %w", p.name, ErrUnsupported)
	}
	pageShift := bits.TrailingZeros(uint(os.Getpagesize()))
	if err := errors.Join(
		spec.Variables["page_shift"].Set(uint32(pageShift)),
		spec.Variables["cpus"].Set(uint32(l.cpus)),
		spec.Variables["with_latency"].Set(l.reasons[groupLatency] == ""),
		spec.Variables[bpf.LineageVarHeartbeatLimitNanos].Set(uint64(l.heartbeatLimit)),
	); err != nil {
		return fmt.Errorf("set constants: %w", err)
	}
	shared := map[string]*ebpf.Map{}
	for name := range spec.Maps {
		if m := l.maps[name]; m != nil && !strings.HasPrefix(name, ".") {
			shared[name] = m
		}
	}
	made, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared, Cache: l.cache})
	if err != nil {
		return err
	}
	defer made.Close()
	for name := range made.Maps {
		if l.maps[name] == nil && !strings.HasPrefix(name, ".") {
			l.maps[name] = made.DetachMap(name)
			l.unlike = l.unlike || l.resuming
		}
	}
	loadedProgram := made.DetachProgram(p.name)
	l.programs[p.name] = loadedProgram
	if p.event == "" {
		return nil
	}
	attached, err := link.AttachTracing(link.TracingOptions{Program: loadedProgram, AttachType: ebpf.AttachTraceRawTp})
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	l.links[p.name] = attached
	return nil
}

func (l *loaded) close() error {
	var err error
	for _, attached := range l.links {
		err = errors.Join(err, attached.Close())
	}
	for _, p := range l.programs {
		err = errors.Join(err, p.Close())
	}
	for _, m := range l.maps {
		err = errors.Join(err, m.Close())
	}
	return err
}

// reasonOf is one line: a verifier's log is not for users.
func reasonOf(err error) string {
	var verifier *ebpf.VerifierError
	if errors.As(err, &verifier) {
		return fmt.Sprintf("the kernel's verifier refused the program: %v", verifier.Cause)
	}
	return err.Error()
}

// cureOf says what the user can do about it.
func cureOf(err error) string {
	var verifier *ebpf.VerifierError
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES) && !errors.As(err, &verifier):
		if mode, readErr := os.ReadFile("/sys/kernel/security/lockdown"); readErr == nil && strings.Contains(string(mode), "[confidentiality]") {
			return "kernel lockdown is in mode confidentiality, which forbids BPF programs to read the kernel: boot with lockdown=integrity"
		}
		if missing := missingCapabilities(); missing != "" {
			return "give the agent " + missing + ": run it as root, or setcap cap_bpf,cap_perfmon,cap_sys_ptrace+ep on its binary"
		}
		return ""
	case errors.Is(err, btf.ErrNotFound), errors.Is(err, os.ErrNotExist), errors.Is(err, btf.ErrNotSupported):
	case errors.Is(err, ErrUnsupported), errors.Is(err, ebpf.ErrNotSupported), errors.As(err, &verifier):
		return "needs another kernel"
	}
	return ""
}

// raiseMemlock lifts the limit on locked memory on kernels before 5.11, which count BPF maps against it; later ones count them in the
// memory cgroup, and the limit is left alone.
func raiseMemlock() error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("read kernel version: %w", err)
	}
	var major, minor int
	if n, _ := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor); n < 2 || major > 5 || major == 5 && minor >= 11 {
		return nil
	}
	unlimited := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unlimited); err != nil {
		return fmt.Errorf("lift the limit on locked memory (ulimit -l unlimited): %w", err)
	}
	return nil
}

// missingCapabilities names what the process lacks of what loading needs; CAP_SYS_ADMIN stands for both.
func missingCapabilities() string {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&header, &data[0]) != nil {
		return ""
	}
	has := func(capability uint) bool { return data[capability/32].Effective&(1<<(capability%32)) != 0 }
	if has(unix.CAP_SYS_ADMIN) {
		return ""
	}
	var missing []string
	if !has(unix.CAP_BPF) {
		missing = append(missing, "CAP_BPF")
	}
	if !has(unix.CAP_PERFMON) {
		missing = append(missing, "CAP_PERFMON")
	}
	return strings.Join(missing, " and ")
}
