package main

import (
	"fmt"
	"io"
	"math/big"
)

// printFlops prints what the demo found, and returns whether everything of ours is right.
func printFlops(out io.Writer, result *demoFlopsResult) bool {
	line := func(name string, cells ...string) {
		fmt.Fprintf(out, "%-24s", name)
		for _, cell := range cells {
			fmt.Fprintf(out, " %16s", cell)
		}
		fmt.Fprintln(out)
	}
	line("FLOP, 1 multiply-add = 2", "truth", "prov4ml", "FlopCounterMode", "fvcore x 2")
	wrong := 0
	for i := range result.Models {
		m := &result.Models[i]
		truth, ours, others := m.counts()
		for _, row := range []struct {
			phase       string
			truth, ours *big.Int
			others      [2]*big.Int
		}{
			{"forward", truth.forward, ours.forward, [2]*big.Int{others[0].forward, others[1].forward}},
			{"backward", truth.backward, ours.backward, [2]*big.Int{others[0].backward, others[1].backward}},
		} {
			line(m.Model+", "+row.phase, digits(row.truth), digits(row.ours), digits(row.others[0]), digits(row.others[1]))
			if row.truth == nil || row.ours == nil || row.truth.Cmp(row.ours) != 0 {
				wrong++
			}
		}
		for _, name := range otherCounters {
			if other := m.Others[name]; other.Error != "" {
				fmt.Fprintf(out, "  %s: %s\n", name, other.Error)
			}
		}
	}
	fmt.Fprintf(out, "The truth is by formula; torch %s. FlopCounterMode runs the model and counts what its kernels execute, without\n", result.Torch)
	fmt.Fprintln(out, "recurrent layers; fvcore runs a forward, counts multiply-adds and some per-element work, and knows no backward. - is none.")

	same := printTrainings(out, result)
	switch {
	case wrong > 0:
		fmt.Fprintf(out, "WRONG: %d counts differ from the truth\n", wrong)
	case !same:
		fmt.Fprintln(out, "WRONG: the trainings differ")
	default:
		fmt.Fprintln(out, "right: every count to the integer; the training is bit-identical with the calls")
		return true
	}
	return false
}

// printTrainings returns whether all ended in the same weights and generators.
func printTrainings(out io.Writer, result *demoFlopsResult) bool {
	fmt.Fprintf(out, "\n%-24s %-32s %12s %26s %12s\n", fmt.Sprintf("%d steps", result.Steps), "weights, optimizer, generators", "a step", "a call: p50 (min-p90)", "the first")
	same := len(result.Trainings) > 0
	for _, t := range result.Trainings {
		same = same && t.Digest != "" && t.Digest == result.Trainings[0].Digest
		call, first := "", ""
		if len(t.CallSeconds) == 3 {
			call = fmt.Sprintf("%.0f (%.0f-%.0f) µs", 1e6*t.CallSeconds[1], 1e6*t.CallSeconds[0], 1e6*t.CallSeconds[2])
			first = fmt.Sprintf("%.1f ms", 1e3*t.FirstCallSeconds)
		}
		fmt.Fprintf(out, "%-24s %-32.32s %9.1f ms %26s %12s\n", t.Name, t.Digest, 1e3*t.StepSeconds, call, first)
	}
	fmt.Fprintln(out, "The first call of a batch shape starts its trace; the others are of a known shape. A call waits for its record unless")
	fmt.Fprintln(out, "it is asynchronous.")
	return same
}

// digits groups a count's digits; - = there is none.
func digits(n *big.Int) string {
	if n == nil {
		return "-"
	}
	if n.IsInt64() {
		return grouped(n.Int64())
	}
	return n.String()
}
