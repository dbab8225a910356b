package flops

import "strings"

// maxEinsumDims bounds the dimensions of all operands of one einsum together: its steps are found by search.
const maxEinsumDims = 512

// einsum is torch.einsum whole, as inference mode shows it. torch contracts pairs, left to right or along path: indices
// of one operand alone that nobody needs later are summed first, then a batched product takes 2 x the product of all
// index sizes of the pair. A pair that contracts nothing is an elementwise product.
func einsum(o *Operator) cost {
	operands := o.operands("tensors")
	if len(operands) == 0 {
		for i := range o.Inputs {
			operands = append(operands, &o.Inputs[i])
		}
	}
	terms, output, sizes, ok := parseEquation(o.Strings["equation"], operands)
	if !ok {
		return unknownBecause("equation is missing or does not fit the operands")
	}
	path := o.list("path")
	if len(path) > 0 && len(path) != 2*(len(terms)-1) {
		return unknownBecause("path does not fit the operands")
	}
	var macs, backward Number
	var multiplications Number
	trained := make([]bool, len(terms))
	for i, t := range operands {
		trained[i] = t.Grad
	}
	for step := 0; len(terms) > 1; step++ {
		i, j := 0, 1
		if len(path) > 0 {
			i, j = dimension(path[2*step], len(terms)), dimension(path[2*step+1], len(terms))
			if i < 0 || j < 0 || i == j {
				return unknownBecause("path does not fit the operands")
			}
			if i > j {
				i, j = j, i
			}
		}
		a, b := terms[i], terms[j]
		grad := trained[i] || trained[j]
		gradients := uint64(0)
		for _, bit := range [...]bool{trained[i], trained[j]} {
			if bit {
				gradients++
			}
		}
		rest := append(append(append([]string(nil), terms[:i]...), terms[i+1:j]...), terms[j+1:]...)
		restTrained := append(append(append([]bool(nil), trained[:i]...), trained[i+1:j]...), trained[j+1:]...)
		needed := func(index string) bool {
			if strings.Contains(output, index) {
				return true
			}
			for _, t := range rest {
				if strings.Contains(t, index) {
					return true
				}
			}
			return false
		}
		var result strings.Builder
		cost := NumberOf(1)
		contracted := false
		for _, r := range indices(a + b) {
			index := string(r)
			inBoth := strings.Contains(a, index) && strings.Contains(b, index)
			switch {
			case needed(index):
				result.WriteString(index)
			case inBoth:
				contracted = true
			default:
				// Summed before the product.
				continue
			}
			cost = cost.Times(uint64(sizes[r]))
		}
		if contracted {
			macs = macs.Add(cost)
			backward = backward.Add(cost.Times(gradients))
		} else {
			multiplications = multiplications.Add(cost)
		}
		if len(path) > 0 {
			// A path appends the result, as opt_einsum numbers it.
			terms, trained = append(rest, result.String()), append(restTrained, grad)
		} else {
			terms, trained = append([]string{result.String()}, rest...), append([]bool{grad}, restTrained...)
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

func sizesOf(o *Operator) Number { return sizes(o.Inputs).Add(sizes(o.Outputs)) }

// indices returns the distinct letters of a term in the order of their first place.
func indices(term string) []rune {
	var list []rune
	for _, r := range term {
		found := false
		for _, seen := range list {
			found = found || seen == r
		}
		if !found {
			list = append(list, r)
		}
	}
	return list
}

// ellipsisIndex is the first of the characters that stand for the dimensions of an ellipsis, counted from its end.
const ellipsisIndex = '\u0100'

// parseEquation returns each operand's indices, the result's, and the size of each index.
func parseEquation(equation string, operands []*Tensor) (terms []string, output string, sizes map[rune]int64, ok bool) {
	equation = strings.ReplaceAll(equation, " ", "")
	left, right, explicit := strings.Cut(equation, "->")
	parts := strings.Split(left, ",")
	if equation == "" || len(parts) != len(operands) {
		return nil, "", nil, false
	}
	total := 0
	for _, t := range operands {
		total += len(t.Dims)
	}
	if total > maxEinsumDims {
		return nil, "", nil, false
	}
	sizes = map[rune]int64{}
	widest := 0
	for i, part := range parts {
		term, dots, valid := expandEllipsis(part, len(operands[i].Dims))
		runes := []rune(term)
		if !valid || len(runes) != len(operands[i].Dims) {
			return nil, "", nil, false
		}
		widest = max(widest, dots)
		for d, r := range runes {
			size := operands[i].Dims[d]
			known, seen := sizes[r]
			switch {
			case !seen || known == 1:
				sizes[r] = size
			case size != 1 && size != known:
				return nil, "", nil, false
			}
		}
		terms = append(terms, term)
	}
	if explicit {
		letters := strings.Replace(right, "...", "", 1)
		term, _, valid := expandEllipsis(right, len([]rune(letters))+widest)
		if !valid {
			return nil, "", nil, false
		}
		for _, r := range term {
			if _, seen := sizes[r]; !seen {
				return nil, "", nil, false
			}
		}
		return terms, term, sizes, true
	}
	// Implicit: the ellipsis, then the letters that occur once.
	var result strings.Builder
	for i := widest - 1; i >= 0; i-- {
		result.WriteRune(ellipsisIndex + rune(i))
	}
	all := strings.Join(terms, "")
	for r := 'A'; r <= 'z'; r++ {
		if strings.Count(all, string(r)) == 1 {
			result.WriteRune(r)
		}
	}
	return terms, result.String(), sizes, true
}

// expandEllipsis replaces "..." by one index per dimension that the letters leave over.
func expandEllipsis(part string, dims int) (term string, dots int, ok bool) {
	before, after, has := strings.Cut(part, "...")
	letters := before + after
	for _, r := range letters {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') {
			return "", 0, false
		}
	}
	if !has {
		return part, 0, true
	}
	dots = dims - len(letters)
	if dots < 0 {
		return "", 0, false
	}
	var b strings.Builder
	b.WriteString(before)
	for i := dots - 1; i >= 0; i-- {
		b.WriteRune(ellipsisIndex + rune(i))
	}
	b.WriteString(after)
	return b.String(), dots, true
}
