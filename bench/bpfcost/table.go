package main

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// pairs are what the workloads gave.
type pairs struct {
	rounds   int
	block    time.Duration
	measured []measured
}

// measured is one workload; an entry of each slice a round.
type measured struct {
	workload workload
	// Operations a second without an agent, with one, and with one while the kernel kept statistics.
	off, on, countedRate []float64
	counted              [][]counted
}

// The goals of docs/benchmark.md.
const (
	goalFolioNanos    = 250
	goalForkShare     = 0.02
	goalLargeShare    = 0.01
	goalStepShare     = 0.01
	goalSnapshotTimes = 20
	// A look at every task of the node would be 6 times as long among the others.
	goalGrowth      = 1.05
	goalLoadedShare = 0.02
	goalIdleShare   = 0.001
	goalAnonymous   = 50e6
)

// rareShare is what of one core a program must use in a workload to have a line of its own.
const rareShare = 0.0002

func (p *pairs) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d rounds in random order, blocks of %v; the median of the rounds, in brackets the smallest and the largest. Every window that the "+
		"agent logged for these blocks was measured by eBPF and holds at least the bytes that the workload moved.\n\n", p.rounds, p.block)
	p.writePairs(&b)
	b.WriteString("\n")
	p.writePrograms(&b)
	b.WriteString("\n")
	p.writeGoals(&b)
	return b.String()
}

func (p *pairs) writePairs(b *strings.Builder) {
	b.WriteString("| workload | an operation | without an agent, a second | with ÷ without | programs, of one core | ns of them an operation | less the clock |\n|---|---|---|---|---|---|---|\n")
	for i := range p.measured {
		m := &p.measured[i]
		fmt.Fprintf(b, "| `%s`: %s | %s | %s | %s | %s | %s | %s |\n", m.workload.name, m.workload.title, m.workload.operation, spread(m.off, number()), spread(m.perRound(func(round int) float64 {
			return m.on[round] / m.off[round]
		}), ratio()), spread(m.perRound(m.share), percent()), spread(m.perRound(m.nanosPerOperation), number()), spread(m.perRound(m.netNanosPerOperation), number()))
	}
}

func (p *pairs) writePrograms(b *strings.Builder) {
	b.WriteString("| workload | event of the program | events/s | ns an event | an empty program there | of one core |\n|---|---|---|---|---|---|\n")
	for i := range p.measured {
		m := &p.measured[i]
		first := "`" + m.workload.name + "`"
		var rare []string
		for _, name := range m.programs() {
			of := func(value func(counted) float64) []float64 {
				return m.perRound(func(round int) float64 { return value(m.find(round, name)) })
			}
			rate := of(func(c counted) float64 { return float64(c.events) / c.took.Seconds() })
			share := of(func(c counted) float64 { return float64(c.nanos) / float64(c.took) })
			if median(share) < rareShare {
				rare = append(rare, "`"+name+"`")
				continue
			}
			empty := "not measured"
			if m.find(0, name).event != "" {
				empty = spread(of(func(c counted) float64 { return perEvent(c.empty) }), number())
			}
			fmt.Fprintf(b, "| %s | `%s` | %s | %s | %s | %s |\n", first, name, spread(rate, number()),
				spread(of(func(c counted) float64 { return perEvent(c.runStatistics) }), number()), empty,
				spread(share, percent()))
			first = ""
		}
		if len(rare) > 0 {
			fmt.Fprintf(b, "| %s | %s: less than 0.02 %% each | | | | |\n", first, strings.Join(rare, ", "))
		}
	}
}

func (p *pairs) writeGoals(b *strings.Builder) {
	b.WriteString("| goal | reach | by the statistics | less the clock | |\n|---|---|---|---|---|\n")
	line := func(what, goal string, limit float64, gross, net []float64, f format) {
		fmt.Fprintf(b, "| %s | ≤ %s | %s | %s | %s |\n", what, goal, spread(gross, f), spread(net, f), verdict(median(gross), median(net), limit))
	}
	for i := range p.measured {
		m := &p.measured[i]
		// One operation is in flight at a time, so what the programs use of a second is their share of an operation.
		gross, net := m.perRound(m.share), m.perRound(m.netShare)
		switch m.workload.name {
		case "write-4k":
			folio := func(nanos func(round int) float64) []float64 {
				return m.perRound(func(round int) float64 {
					return nanos(round) * m.countedRate[round] / m.find(round, "writeback_dirty_folio").rate()
				})
			}
			line("`write-4k`: a dirtied folio, until it is written", "250 ns", goalFolioNanos, folio(m.nanosPerOperation), folio(m.netNanosPerOperation), nanos())
		case "read-64k", "read-64k-disk", "read-1m-disk", "write-64k":
			line(fmt.Sprintf("`%s`: of the time of an I/O", m.workload.name), "1 %", goalLargeShare, gross, net, percent())
		case "forks":
			line("`forks`: of the time of fork + exit + wait", "2 %", goalForkShare, gross, net, percent())
		case trainingName:
			line("`training`: of the time of a step", "1 %", goalStepShare, gross, net, percent())
		}
	}
}

// verdict judges by the statistics, which a running agent does not pay for.
func verdict(gross, net, limit float64) string {
	switch {
	case gross <= limit:
		return "reached"
	case net <= limit:
		return "reached without the clock"
	}
	return "missed"
}

func (m *measured) perRound(value func(round int) float64) []float64 {
	values := make([]float64, len(m.off))
	for round := range values {
		values[round] = value(round)
	}
	return values
}

// programs are the names of those that ran, the costliest first.
func (m *measured) programs() []string {
	nanos := map[string]uint64{}
	for _, round := range m.counted {
		for _, c := range round {
			if c.events > 0 {
				nanos[c.label()] += c.nanos
			}
		}
	}
	var names []string
	for name := range nanos {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(nanos[b], nanos[a]), cmp.Compare(a, b)) })
	return names
}

// find returns zeroes when the program did not run in this round.
func (m *measured) find(round int, label string) counted {
	for _, c := range m.counted[round] {
		if c.label() == label {
			return c
		}
	}
	return counted{took: m.counted[round][0].took}
}

// label is the event, and the name of what has none.
func (c counted) label() string { return cmp.Or(c.event, c.name) }

func (c counted) rate() float64 { return float64(c.events) / c.took.Seconds() }

// share is what the programs on events used of one core. Those that the agent runs itself are in its own CPU time.
func (m *measured) share(round int) float64 {
	share := 0.0
	for _, c := range m.counted[round] {
		if c.event != "" {
			share += float64(c.nanos) / float64(c.took)
		}
	}
	return share
}

func (m *measured) nanosPerOperation(round int) float64 {
	return m.share(round) * 1e9 / m.countedRate[round]
}

// netShare takes an empty program's time off each event's.
func (m *measured) netShare(round int) float64 {
	share := 0.0
	for _, c := range m.counted[round] {
		if c.event != "" && c.events > 0 {
			share += max(0, float64(c.nanos)-float64(c.events)*perEvent(c.empty)) / float64(c.took)
		}
	}
	return share
}

func (m *measured) netNanosPerOperation(round int) float64 {
	return m.netShare(round) * 1e9 / m.countedRate[round]
}

// perEvent is in ns; NaN when there was none.
func perEvent(s runStatistics) float64 { return float64(s.nanos) / float64(s.events) }

func (g *goals) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "The agent itself. A look at a tree of %d sleeping processes reads memory, I/O, CPU time and page faults of each, %d rounds; the other "+
		"%d processes of the node sleep too. The agent's CPU time is that of its threads in %d windows of %v, while %d trees of %d processes log once a "+
		"second, spread over the second, with export of spans and metrics by OTLP to a receiver on this machine: %d of %d calls were exported.\n\n",
		treeProcesses, g.rounds, otherProcesses, windows, g.window, loggingTrees, loggerChildren+1, g.exported, g.calls)
	b.WriteString("| | alone | among the other processes | gopsutil ÷ this | growth |\n|---|---|---|---|---|\n")
	for _, name := range []string{byEBPF, byProcfs, byGopsutil} {
		fmt.Fprintf(&b, "| %s, µs | %s | %s | %s | %s |\n", name, spread(g.alone[name], micros()), spread(g.among[name], micros()),
			spread(quotients(g.alone[byGopsutil], g.alone[name]), number()), spread(quotients(g.among[name], g.alone[name]), ratio()))
	}
	b.WriteString("\n| goal | reach | measured | |\n|---|---|---|---|\n")
	row := func(what, goal, measured string, reached bool) {
		word := "missed"
		if reached {
			word = "reached"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", what, goal, measured, word)
	}
	times, growth := quotients(g.alone[byGopsutil], g.alone[byEBPF]), quotients(g.among[byEBPF], g.alone[byEBPF])
	row(fmt.Sprintf("snapshot of a tree of %d, gopsutil ÷ ours", treeProcesses), fmt.Sprintf("≥ %d times", goalSnapshotTimes), spread(times, number()), median(times) >= goalSnapshotTimes)
	row(fmt.Sprintf("its growth with %d other processes", otherProcesses), "none: ≤ 1.05", spread(growth, ratio()), median(growth) <= goalGrowth)
	row(fmt.Sprintf("agent, %d trees at 1 Hz, export included", loggingTrees), "≤ 2 % of a core", spread(g.loaded, percent()), median(g.loaded) <= goalLoadedShare)
	row("agent, idle", "≤ 0.1 % of a core", spread(g.idle, percent()), median(g.idle) <= goalIdleShare)
	row(fmt.Sprintf("anonymous RSS with %d trees", loggingTrees), "≤ 50 MB", spread(g.anonymousBytes, megabytes()), median(g.anonymousBytes) <= goalAnonymous)
	return b.String()
}

func quotients(of, by []float64) []float64 {
	values := make([]float64, len(of))
	for i := range of {
		values[i] = of[i] / by[i]
	}
	return values
}

func machine(before [2]float64) string {
	model := "unknown CPU"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range bytes.Lines(info) {
			if name, value, ok := bytes.Cut(line, []byte(":")); ok && string(bytes.TrimSpace(name)) == "model name" {
				model = string(bytes.TrimSpace(value))
				break
			}
		}
	}
	var name unix.Utsname
	kernel := "unknown"
	if unix.Uname(&name) == nil {
		kernel = unix.ByteSliceToString(name.Release[:])
	}
	return fmt.Sprintf("%d cores of %s, Linux %s; before it began, load average %.1f over the last minute, %.1f over five.\n", runtime.NumCPU(), model, kernel, before[0], before[1])
}

// load is the load average over one minute and over five.
func load() (averages [2]float64) {
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		_, _ = fmt.Sscan(string(text), &averages[0], &averages[1])
	}
	return averages
}

// seconds is a time from a number of them.
func seconds(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }

// format shows a number, its unit behind it.
type format struct {
	number func(float64) string
	unit   string
}

// spread shows the median, the smallest and the largest.
func spread(values []float64, f format) string {
	known := slices.DeleteFunc(slices.Clone(values), math.IsNaN)
	if len(known) == 0 {
		return "none"
	}
	return fmt.Sprintf("%s%s (%s to %s)", f.number(median(known)), f.unit, f.number(slices.Min(known)), f.number(slices.Max(known)))
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}
	return sorted[middle]
}

// The formats. Figures have three digits: more are noise.
func number() format { return format{digits, ""} }

func ratio() format   { return format{func(n float64) string { return fmt.Sprintf("%.3f", n) }, ""} }
func percent() format { return format{func(n float64) string { return digits(100 * n) }, " %"} }
func nanos() format   { return format{digits, " ns"} }
func micros() format  { return format{func(n float64) string { return digits(n / 1000) }, ""} }

func megabytes() format {
	return format{func(n float64) string { return digits(n / 1e6) }, " MB"}
}

func digits(n float64) string {
	switch {
	case n >= 100:
		return thousands(n)
	case n >= 1:
		return fmt.Sprintf("%.3g", n)
	}
	return fmt.Sprintf("%.2g", n)
}

// thousands shows a whole number with commas.
func thousands(n float64) string {
	text := fmt.Sprintf("%.0f", n)
	for at := len(text) - 3; at > 0; at -= 3 {
		text = text[:at] + "," + text[at:]
	}
	return text
}

const (
	sectionBegin = "<!-- make bench-bpf writes from here -->\n"
	sectionEnd   = "<!-- to here: bench-bpf -->\n"
)

// replaceSection replaces what stands between the two marks.
func replaceSection(path, text string) error {
	document, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the document: %w", err)
	}
	head, rest, found := strings.Cut(string(document), sectionBegin)
	_, tail, foundEnd := strings.Cut(rest, sectionEnd)
	if !found || !foundEnd {
		return fmt.Errorf("%s lacks the lines %q and %q", path, strings.TrimSpace(sectionBegin), strings.TrimSpace(sectionEnd))
	}
	if err := os.WriteFile(path, []byte(head+sectionBegin+text+sectionEnd+tail), 0o644); err != nil {
		return fmt.Errorf("write the document: %w", err)
	}
	return nil
}
