package report

import (
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/store"
)

// Summary writes what run prints at its end: a table with a row for each context, the run's total, what could not be measured and
// why, and the paths of what was written. On a terminal it fits the terminal's width and the head of the table is bold, unless
// NO_COLOR is set.
func Summary(w io.Writer, records iter.Seq2[store.Stored, error], paths ...string) error {
	r, err := collect(records)
	if err != nil {
		return fmt.Errorf("read the records: %w", err)
	}
	l := layout{}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil {
			l.width = width
		}
		l.bold = os.Getenv("NO_COLOR") == ""
	}
	_, err = io.WriteString(w, l.summary(r, paths))
	return err
}

// layout is how the text is laid out.
type layout struct {
	// width of the terminal in columns; 0 = no limit.
	width int
	bold  bool
}

// maxInnerRows bounds the rows of processes inside others.
const maxInnerRows = 8

// maxReasons bounds the lines about what could not be measured.
const maxReasons = 10

const nothingLogged = `No call was logged, so there is nothing to show. Log from the training script:

    import prov4ml
    prov4ml.log_system_metrics(prov4ml.Context.TRAINING, step=epoch)

Each call reports what the process and all its children did since the one before.
`

func (l layout) summary(r *run, paths []string) string {
	var b strings.Builder
	if len(r.processes) == 0 {
		b.WriteString(nothingLogged)
		writePaths(&b, paths)
		return b.String()
	}
	b.WriteString(title(r) + "\n\n")

	rows, inner := r.rows()
	lines := make([]line, 0, len(rows)+len(inner)+2)
	for _, row := range rows {
		lines = append(lines, line{label: contextLabel(row), row: row})
	}
	for i, n := range inner {
		if i == maxInnerRows {
			break
		}
		lines = append(lines, line{label: fmt.Sprintf("└ %s, pid %d", contextLabel(n.row), n.process.key.pid), row: n.row})
	}
	if left := r.left(); left != nil {
		lines = append(lines, line{label: "after the last call", row: left})
	}
	total, ended := r.total(rows)
	lines = append(lines, line{label: "total", row: total, last: true})
	hidden := l.table(&b, lines)

	for _, note := range r.notes(ended, len(inner), hidden) {
		b.WriteString("\n" + note)
	}
	b.WriteString("\n")
	writePaths(&b, paths)
	return b.String()
}

func writePaths(b *strings.Builder, paths []string) {
	if len(paths) == 0 {
		return
	}
	b.WriteString("\nwritten:\n")
	for _, p := range paths {
		b.WriteString("  " + printable(p) + "\n")
	}
}

// title names the run.
func title(r *run) string {
	var names, runs []string
	start, end := r.processes[0].start, r.processes[0].end
	outer := 0
	for _, p := range r.processes {
		if n := printable(p.described.GetServiceName()); n != "" && !slices.Contains(names, n) {
			names = append(names, n)
		}
		if n := printable(p.described.GetRunId()); n != "" && !slices.Contains(runs, n) {
			runs = append(runs, n)
		}
		start, end = min(start, p.start), max(end, p.end)
		if r.inside(p) == nil {
			outer++
		}
	}
	parts := []string{strings.Join(names, ", ")}
	if len(runs) > 0 {
		parts = append(parts, "run "+strings.Join(runs, ", "))
	}
	if outer > 1 {
		parts = append(parts, fmt.Sprintf("%d processes", outer))
	}
	parts = append(parts, plural(r.calls, "call")+" in "+durationText(time.Duration(end-start)))
	return strings.TrimPrefix(strings.Join(parts, " · "), " · ")
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return countText(int64(n)) + " " + word + "s"
}

// innerRow is a row of a process inside another one.
type innerRow struct {
	process *process
	row     *tally
}

// rows are the contexts, each over all outermost processes, in order of appearance, and apart from them those of processes
// inside others, whose values are in the others' already.
func (r *run) rows() (rows []*tally, inner []innerRow) {
	for _, p := range r.processes {
		if r.inside(p) != nil {
			for _, row := range p.rows {
				inner = append(inner, innerRow{p, row})
			}
			continue
		}
		for _, row := range p.rows {
			i := slices.IndexFunc(rows, func(x *tally) bool { return x.context == row.context && x.none == row.none })
			if i < 0 {
				i = len(rows)
				rows = append(rows, newTally(row.context, row.none))
			}
			rows[i].merge(row)
		}
	}
	return rows, inner
}

// left is the remainder of the outermost processes; nil when nothing has ended.
func (r *run) left() *tally {
	var left *tally
	for _, p := range r.processes {
		if r.inside(p) != nil || p.left == nil {
			continue
		}
		if left == nil {
			left = newTally("", true)
		}
		left.merge(p.left)
	}
	return left
}

// total is what the outermost processes did from hello to end, as their RUN_END says; where one has none, the sum of its
// windows. ended is false then.
func (r *run) total(rows []*tally) (total *tally, ended bool) {
	total, ended = newTally("", true), true
	for _, p := range r.processes {
		if r.inside(p) != nil {
			continue
		}
		one := p.totals
		if one == nil {
			ended = false
			one = newTally("", true)
			for _, row := range p.rows {
				one.merge(row)
			}
		}
		for _, row := range p.rows {
			total.mfu.add(row.mfu)
			total.batch.add(row.batch)
			total.epoch.add(row.epoch)
		}
		span := &tally{sums: one.sums, peak: one.peak, duration: time.Duration(p.end - p.start)}
		total.merge(span)
	}
	for _, row := range rows {
		total.calls += row.calls
	}
	return total, ended
}

// notes are the lines below the table.
func (r *run) notes(ended bool, inner int, hidden []string) []string {
	var notes []string
	say := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }

	outer := 0
	var unattributed, pending amount
	for _, p := range r.processes {
		if r.inside(p) == nil {
			outer++
			// The node's bytes: windows of two processes overlap.
			unattributed.largest(p.unattributed)
			pending.add(p.pending)
		}
	}
	if outer > 1 {
		say("Sums over %d processes that ran side by side; time and RSS peak are those of the largest.", outer)
	}
	if inner > 0 {
		say("Rows with └ are of processes inside the others: their values are in the rows above, and are not added again.")
		if inner > maxInnerRows {
			say("%d more of them are not shown.", inner-maxInnerRows)
		}
	}
	if !ended {
		say("The end of the run is not recorded: the total is what was logged.")
	}
	if pending.value > 0 {
		say("%s of the written data had not reached the disk at the end.", bytesText(int64(pending.value)))
	}
	if unattributed.value > 0 {
		say("%s that the node wrote meanwhile have no known writer: dirtied before the agent attached, or by the kernel.", bytesText(int64(unattributed.value)))
	}
	if r.first > 0 {
		say("%s began when the agent first heard of the process, not at its hello.", of(r.first, r.windows, "window"))
	}
	if r.gaps > 0 {
		say("%s had a gap in which nothing was counted.", of(r.gaps, r.windows, "window"))
	}
	if r.partial > 0 {
		say("%s lack a part: their values are lower bounds (≥).", of(r.partial, r.windows, "window"))
	}
	if r.dropped > 0 {
		say("%s could not be sent by the training script.", plural(int(r.dropped), "call"))
	}
	if len(hidden) > 0 {
		say("A wider terminal shows: %s.", strings.Join(hidden, ", "))
	}

	if s := r.sourceText(); s != "" {
		notes = append(notes, s)
	}
	if len(r.reasons) > 0 {
		notes = append(notes, "not measured:")
		for i, reason := range r.reasons {
			if i == maxReasons {
				say("  and %d more reasons", len(r.reasons)-maxReasons)
				break
			}
			line := "  " + printable(reason.text)
			if reason.windows < r.windows {
				line += fmt.Sprintf(" (%s)", of(reason.windows, r.windows, "window"))
			}
			notes = append(notes, line)
		}
	}
	return notes
}

// of says how many of how many.
func of(n, all int, word string) string {
	return fmt.Sprintf("%s of %s", countText(int64(n)), plural(all, word))
}

func (r *run) sourceText() string {
	var parts []string
	for _, s := range []struct{ name, word string }{{record.SourceDisk, "disk"}, {record.SourceMemory, "memory"}} {
		if sources := r.sources[s.name]; len(sources) > 0 {
			parts = append(parts, s.word+" "+printable(strings.Join(sources, " and ")))
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return "sources: " + strings.Join(parts, ", ")
}

func contextLabel(r *tally) string {
	if r.none {
		return "(no context)"
	}
	const longest = 32
	label := printable(r.context)
	if utf8.RuneCountInString(label) > longest {
		label = string([]rune(label)[:longest-1]) + "…"
	}
	if label == "" {
		return `""`
	}
	return label
}

// printable keeps what a script gave from steering the terminal.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c >= 0x80 && c < 0xa0 || c == utf8.RuneError {
			return '?'
		}
		return c
	}, s)
}
