package main

import (
	"fmt"
	"io"
	"strconv"
)

// truthTable prints rows of one width and adds up what is wrong.
type truthTable struct {
	out io.Writer
	// wrongBytes of disk data, and whether a memory peak is out of its bounds.
	wrongBytes int64
	wrongPeak  bool
}

// printTruth prints the table, and returns whether every value of it is right.
func printTruth(out io.Writer, rows []demoRow, psutilVersion string) bool {
	t := truthTable{out: out}
	t.line("bytes", "truth", "prov4ml", "error", "/proc/PID/io", "psutil's tree")
	fmt.Fprintln(out, "written to the disk")
	t.section(rows, func(r *demoRow) diskCells { return diskCells{r.write, r.ours.Write, r.procIO.Write, r.psutil.Write} })
	fmt.Fprintln(out, "read from the disk")
	t.section(rows, func(r *demoRow) diskCells { return diskCells{r.read, r.ours.Read, r.procIO.Read, r.psutil.Read} })
	fmt.Fprintln(out, "largest memory of the tree in the window (MiB)")
	for i := range rows {
		if rows[i].memory {
			t.peak(&rows[i])
		}
	}
	fmt.Fprintln(out, "/proc/PID/io is the job's own, with the children that it has waited for; psutil's tree is the job and its children,")
	fmt.Fprintln(out, "asked at each log call"+psutilNote(psutilVersion)+". The peak is published as two bounds.")
	switch {
	case t.wrongBytes > 0:
		fmt.Fprintf(out, "WRONG: %s bytes of disk data differ from the truth\n", grouped(t.wrongBytes))
	case t.wrongPeak:
		fmt.Fprintln(out, "WRONG: the memory peak is not within the published bounds")
	default:
		fmt.Fprintln(out, "right: every byte of disk data; the memory peak is within the published bounds")
		return true
	}
	return false
}

func psutilNote(version string) string {
	if version == "" {
		return ""
	}
	return " (psutil " + version + ")"
}

func (t *truthTable) line(name, truth, ours, wrong, procIO, psutil string) {
	fmt.Fprintf(t.out, "%-28s %15s %15s %9s %13s %13s\n", name, truth, ours, wrong, procIO, psutil)
}

// diskCells are the bytes of one row by source.
type diskCells struct{ truth, ours, procIO, psutil int64 }

func (t *truthTable) section(rows []demoRow, of func(*demoRow) diskCells) {
	var all diskCells
	psutil := false
	for i := range rows {
		r := &rows[i]
		c := of(r)
		t.disk(r.name, c, r.hasPsutil)
		t.wrongBytes += max(c.ours-c.truth, c.truth-c.ours)
		all = diskCells{all.truth + c.truth, all.ours + c.ours, all.procIO + c.procIO, all.psutil + c.psutil}
		psutil = r.hasPsutil
	}
	t.disk("together", all, psutil)
}

func (t *truthTable) disk(name string, c diskCells, hasPsutil bool) {
	psutil := "-"
	if hasPsutil {
		psutil = grouped(c.psutil)
	}
	wrong := "0"
	if c.ours != c.truth {
		wrong = fmt.Sprintf("%+d", c.ours-c.truth)
	}
	t.line("  "+name, grouped(c.truth), grouped(c.ours), wrong, grouped(c.procIO), psutil)
}

func (t *truthTable) peak(r *demoRow) {
	psutil, verdict := "-", "within"
	if r.hasPsutil {
		psutil = mebibytes(r.psutil.RSS)
	}
	if !r.peakRight() {
		verdict, t.wrongPeak = "WRONG", true
	}
	upper := mebibytes(r.peakUpper)
	if r.peakUpper == 0 {
		upper = "?"
	}
	t.line("  "+r.name, mebibytes(r.held), mebibytes(r.peakLower)+".."+upper, verdict, "-", psutil)
}

// grouped writes 67108864 as 67,108,864.
func grouped(n int64) string {
	if n < 0 {
		return "-" + grouped(-n)
	}
	text := strconv.FormatInt(n, 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func mebibytes(n int64) string { return strconv.FormatFloat(float64(n)/demoMiB, 'f', 1, 64) }
