package flops

import (
	"slices"
	"strings"
)

// Batches is how often one batch occurs in an epoch.
type Batches struct {
	Totals *Totals
	Count  uint64
}

// Epoch adds up batches: the cost is affine in the batch size, not linear, so that an epoch is the sum over its
// distinct shapes, the short last batch for itself. A batch that could not be counted makes the epoch incomplete,
// with its reason as a note.
func Epoch(batches []Batches) *Totals {
	t := &Totals{}
	operators, modules, dtypes := groups{}, groups{}, groups{}
	unknowns := map[[2]string]Number{}
	var methods, missing []string
	samplesKnown := true
	for _, b := range batches {
		if b.Count == 0 {
			continue
		}
		n := NumberOf(b.Count)
		if reason := b.Totals.MissingReason; reason != "" {
			missing = appendNew(missing, reason)
			continue
		}
		t.Sums = t.plus(b.Totals.times(n))
		for _, g := range [...]struct {
			to   groups
			from []Group
		}{{operators, b.Totals.Operators}, {modules, b.Totals.Modules}, {dtypes, b.Totals.DTypes}} {
			for _, share := range g.from {
				g.to.add(share.Name, share.Executions.Mul(n), share.times(n))
			}
		}
		c := &t.Coverage
		c.Exact = c.Exact.Add(b.Totals.Coverage.Exact.Mul(n))
		c.Declared = c.Declared.Add(b.Totals.Coverage.Declared.Mul(n))
		c.Estimated = c.Estimated.Add(b.Totals.Coverage.Estimated.Mul(n))
		c.Zero = c.Zero.Add(b.Totals.Coverage.Zero.Mul(n))
		for _, u := range b.Totals.Coverage.Unknown {
			key := [2]string{u.Name, u.Reason}
			unknowns[key] = unknowns[key].Add(u.Executions.Mul(n))
		}
		methods = appendNew(methods, b.Totals.Method)
		for _, note := range b.Totals.Notes {
			t.Notes = appendNew(t.Notes, note)
		}
		t.Training = t.Training || b.Totals.Training
		t.BytesIncomplete = t.BytesIncomplete || b.Totals.BytesIncomplete
		samplesKnown = samplesKnown && !b.Totals.Samples.IsZero()
		t.Samples = t.Samples.Add(b.Totals.Samples.Mul(n))
	}
	if !samplesKnown {
		t.Samples = Number{}
	}
	t.Operators, t.Modules, t.DTypes = operators.sorted(), modules.sorted(), dtypes.sorted()
	t.Coverage.Unknown = sortedUnknowns(unknowns)
	t.Method = strings.Join(methods, "+")
	t.MissingReason = strings.Join(missing, "; ")
	return t
}

// appendNew appends a text that the list does not have. MaxNotes bounds the list as it bounds a batch's: an epoch may be made of
// thousands of shapes, each with texts of its own, and all of them go into one record.
func appendNew(list []string, s string) []string {
	if s == "" || len(list) >= MaxNotes || slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}
