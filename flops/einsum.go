package flops

import "strings"

// indexSet is a set of an equation's indices: 26 small and 26 capital letters, and the dimensions of an ellipsis
// counted from its end.
type indexSet [2]uint64

// ellipsisFirst is the number of the ellipsis's last dimension; letters have the numbers before it.
const (
	ellipsisFirst = 64
	indexLimit    = ellipsisFirst + MaxDims
)

func (s indexSet) has(i int) bool { return s[i/64]>>(i%64)&1 != 0 }

func (s indexSet) with(i int) indexSet {
	s[i/64] |= 1 << (i % 64)
	return s
}

func (s indexSet) union(t indexSet) indexSet     { return indexSet{s[0] | t[0], s[1] | t[1]} }
func (s indexSet) intersect(t indexSet) indexSet { return indexSet{s[0] & t[0], s[1] & t[1]} }
func (s indexSet) without(t indexSet) indexSet   { return indexSet{s[0] &^ t[0], s[1] &^ t[1]} }
func (s indexSet) empty() bool                   { return s == indexSet{} }

// volume is the product of the sizes of a set's indices.
func (s indexSet) volume(sizes *[indexLimit]int64) Number {
	n := NumberOf(1)
	for i := range indexLimit {
		if s.has(i) {
			n = n.Times(uint64(sizes[i]))
		}
	}
	return n
}

// einsum is torch.einsum whole, as inference mode shows it. torch contracts pairs, left to right or along path:
// indices that only one of the two has, with a size other than 1, and that neither the result nor a later operand
// needs are summed first; then a batched product takes 2 x the product of all remaining index sizes of the pair. A
// pair that contracts nothing is an elementwise product.
func einsum(o *Operator) cost {
	operands := o.operands("tensors")
	if len(operands) == 0 {
		for i := range o.Inputs {
			operands = append(operands, &o.Inputs[i])
		}
	}
	e, ok := parseEquation(o.Strings["equation"], operands)
	if !ok {
		return unknownBecause("equation is missing or does not fit the operands")
	}
	path := o.list("path")
	if len(path) > 0 && len(path) != 2*(len(e.terms)-1) {
		return unknownBecause("path does not fit the operands")
	}
	trained := make([]bool, len(operands))
	for i, t := range operands {
		trained[i] = t.Grad
	}
	var macs, backward, multiplications Number
	terms := e.terms
	for step := 0; len(terms) > 1; step++ {
		i, j := 0, 1
		if len(path) > 0 {
			i, j = dimension(path[2*step], len(terms)), dimension(path[2*step+1], len(terms))
			if i < 0 || j < 0 || i == j {
				return unknownBecause("path does not fit the operands")
			}
			i, j = min(i, j), max(i, j)
		}
		a, b := terms[i], terms[j]
		gradA, gradB := trained[i], trained[j]
		terms = append(append(append([]indexSet(nil), terms[:i]...), terms[i+1:j]...), terms[j+1:]...)
		trained = append(append(append([]bool(nil), trained[:i]...), trained[i+1:j]...), trained[j+1:]...)
		needed := e.output
		for _, t := range terms {
			needed = needed.union(t)
		}
		result := a.union(b).intersect(needed)
		contracted := a.intersect(b).without(needed)
		volume := result.union(contracted).volume(&e.sizes)
		if contracted.empty() {
			multiplications = multiplications.Add(volume)
		} else {
			macs = macs.Add(volume)
			backward = backward.Add(times(gradA, volume)).Add(times(gradB, volume))
		}
		if len(path) > 0 {
			// A path appends the result, as opt_einsum numbers it.
			terms, trained = append(terms, result), append(trained, gradA || gradB)
		} else {
			terms, trained = append([]indexSet{result}, terms...), append([]bool{gradA || gradB}, trained...)
		}
	}
	c := products(matmul, operands[0], macs, backward)
	if macs.IsZero() {
		c.class = estimated
	}
	c.forward.Elementwise = multiplications
	c.forward.Bytes = sizesOf(o)
	return c
}

// equation is einsum's equation on given operands.
type equation struct {
	// Indices of each operand whose size there is not 1: the others broadcast and cost nothing. All of the result's.
	terms  []indexSet
	output indexSet
	sizes  [indexLimit]int64
}

func parseEquation(text string, operands []*Tensor) (e equation, ok bool) {
	text = strings.ReplaceAll(text, " ", "")
	left, right, explicit := strings.Cut(text, "->")
	parts := strings.Split(left, ",")
	if text == "" || len(parts) != len(operands) {
		return e, false
	}
	var seen, ellipsis indexSet
	occurrences := [indexLimit]int{}
	for i, part := range parts {
		indices, valid := termIndices(part, len(operands[i].Dims))
		if !valid || len(indices) != len(operands[i].Dims) {
			return e, false
		}
		var term indexSet
		for d, index := range indices {
			size := operands[i].Dims[d]
			known := e.sizes[index]
			switch {
			case !seen.has(index) || known == 1:
				e.sizes[index] = size
			case size != 1 && size != known:
				return e, false
			}
			seen = seen.with(index)
			if size != 1 {
				term = term.with(index)
			}
			occurrences[index]++
			if index >= ellipsisFirst {
				ellipsis = ellipsis.with(index)
			}
		}
		e.terms = append(e.terms, term)
	}
	if !explicit {
		// Implicit: the ellipsis, and the letters that occur once.
		e.output = ellipsis
		for i := range ellipsisFirst {
			if occurrences[i] == 1 {
				e.output = e.output.with(i)
			}
		}
		return e, true
	}
	before, after, dots := strings.Cut(right, "...")
	indices, valid := termIndices(before+after, len(before)+len(after))
	if !valid {
		return e, false
	}
	for _, index := range indices {
		if !seen.has(index) {
			return e, false
		}
		e.output = e.output.with(index)
	}
	if dots {
		e.output = e.output.union(ellipsis)
	}
	return e, true
}

// termIndices numbers the indices of one term; an ellipsis stands for the dimensions that its letters leave over.
func termIndices(part string, dims int) (indices []int, ok bool) {
	before, after, dots := strings.Cut(part, "...")
	rest := 0
	if dots {
		if rest = dims - len(before) - len(after); rest < 0 || rest > MaxDims {
			return nil, false
		}
	}
	letters := func(s string) bool {
		for i := range len(s) {
			switch c := s[i]; {
			case c >= 'a' && c <= 'z':
				indices = append(indices, int(c-'a'))
			case c >= 'A' && c <= 'Z':
				indices = append(indices, int(c-'A')+26)
			default:
				return false
			}
		}
		return true
	}
	if !letters(before) {
		return nil, false
	}
	for i := rest - 1; i >= 0; i-- {
		indices = append(indices, ellipsisFirst+i)
	}
	return indices, letters(after)
}

func sizesOf(o *Operator) Number { return sizes(o.Inputs).Add(sizes(o.Outputs)) }
