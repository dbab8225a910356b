package report

import (
	"strings"
	"time"
	"unicode/utf8"

	"github.com/prov4ml/agent/record"
)

// line is a line of the table.
type line struct {
	label string
	row   *tally
	// last: a rule stands before it.
	last bool
}

// column is a column of the table.
type column struct {
	head string
	cell func(*tally) string
	// keep is how long it stays when the terminal is narrow: the smallest goes first; 0 = always.
	keep int
}

// unknown is the cell of a value that was not measured.
const unknown = "-"

func columns(lines []line) []column {
	sum := func(name string, text func(float64) string) func(*tally) string {
		return func(r *tally) string { return cell(r.sums[name], text) }
	}
	size := func(v float64) string { return bytesText(int64(v)) }
	count := func(v float64) string { return countText(int64(v)) }
	out := []column{
		{"calls", func(r *tally) string { return orUnknown(int64(r.calls)) }, 5},
		{"steps", func(r *tally) string { return orUnknown(int64(len(r.steps))) }, 9},
		{"time", func(r *tally) string { return orUnknownTime(r.duration) }, 0},
		{"read", sum(record.DiskReadBytes, size), 0},
		{"written", sum(record.DiskWriteBytes, size), 0},
		{"dirtied", sum(record.DiskDirtiedBytes, size), 4},
		{"asked read", sum(record.IOReadBytes, size), 2},
		{"asked write", sum(record.IOWriteBytes, size), 2},
		{"RSS peak", func(r *tally) string { return cell(r.peak, size) }, 10},
		{"minor faults", sum(record.MemoryMinorFaults, count), 1},
		{"major faults", sum(record.MemoryMajorFaults, count), 3},
		{"CPU", sum(record.CPUSeconds, func(v float64) string { return durationText(time.Duration(v * float64(time.Second))) }), 8},
	}
	var flops, mfu bool
	for _, l := range lines {
		flops = flops || l.row.batch.known() || l.row.epoch.known()
		mfu = mfu || l.row.mfu.known()
	}
	if flops {
		out = append(out, column{"FLOPs", func(r *tally) string {
			if r.batch.known() {
				return cell(r.batch, flopsText)
			}
			return cell(r.epoch, flopsText)
		}, 7})
	}
	if mfu {
		out = append(out, column{"MFU", func(r *tally) string {
			if !r.mfu.known() {
				return unknown
			}
			return digits(100*r.mfu.value/float64(r.mfu.measured)) + " %"
		}, 6})
	}
	return out
}

func cell(a amount, text func(float64) string) string {
	switch {
	case !a.known():
		return unknown
	case a.partial():
		return "≥ " + text(a.value)
	default:
		return text(a.value)
	}
}

func orUnknown(n int64) string {
	if n == 0 {
		return unknown
	}
	return countText(n)
}

func orUnknownTime(d time.Duration) string {
	if d == 0 {
		return unknown
	}
	return durationText(d)
}

// gap is between columns.
const gap = 2

// table writes the table and returns the heads of the columns that had no room.
func (l layout) table(b *strings.Builder, lines []line) (hidden []string) {
	shown := columns(lines)
	widths := make(map[string]int, len(shown))
	label := len("context")
	for _, line := range lines {
		label = max(label, utf8.RuneCountInString(line.label))
	}
	for _, c := range shown {
		widths[c.head] = utf8.RuneCountInString(c.head)
		for _, line := range lines {
			widths[c.head] = max(widths[c.head], utf8.RuneCountInString(c.cell(line.row)))
		}
	}
	width := func() int {
		w := label
		for _, c := range shown {
			w += gap + widths[c.head]
		}
		return w
	}
	for l.width > 0 && width() > l.width {
		least := -1
		for i, c := range shown {
			if c.keep > 0 && (least < 0 || c.keep < shown[least].keep) {
				least = i
			}
		}
		if least < 0 {
			break // what is left must be there
		}
		hidden = append(hidden, shown[least].head)
		shown = append(shown[:least:least], shown[least+1:]...)
	}

	var head strings.Builder
	head.WriteString(pad("context", label))
	for _, c := range shown {
		head.WriteString(strings.Repeat(" ", gap) + padLeft(c.head, widths[c.head]))
	}
	if l.bold {
		b.WriteString("\x1b[1m" + head.String() + "\x1b[0m\n")
	} else {
		b.WriteString(head.String() + "\n")
	}
	for _, line := range lines {
		if line.last {
			b.WriteString(strings.Repeat("─", width()) + "\n")
		}
		b.WriteString(pad(line.label, label))
		for _, c := range shown {
			b.WriteString(strings.Repeat(" ", gap) + padLeft(c.cell(line.row), widths[c.head]))
		}
		b.WriteString("\n")
	}
	return hidden
}

func pad(s string, n int) string { return s + strings.Repeat(" ", n-utf8.RuneCountInString(s)) }

func padLeft(s string, n int) string { return strings.Repeat(" ", n-utf8.RuneCountInString(s)) + s }
