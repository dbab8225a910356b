// Package flops turns the operators that a batch executes, with their shapes, into floating-point operations, and those
// into rates and utilisation. It is arithmetic: no I/O, no clock, no state but the bounded [Memo].
//
// One multiply-accumulate is two FLOP. Each operator belongs to one class:
//
//   - exact: matrix products, convolutions, attention, recurrent layers. Only these are in the headline, and they are
//     right to the integer for the shapes given: see docs/flops.md for each formula and its source. Taps that fall on
//     zero padding are counted, as a transposed convolution's cropped taps are.
//   - estimated: per-element work (norms, activations, reductions, FFT, decompositions) in Elementwise and
//     Transcendentals, never in the headline.
//   - zero: views, copies, gathers, random numbers.
//   - unknown: everything else, reported by name with the number of its executions. Unknown is never zero: a result
//     with an unknown operator is not complete.
//
// The backward pass is derived per operand: every product and convolution costs its forward again for each operand
// that needs a gradient, attention and recurrent layers follow their own rules ([Count]). A list that recorded its
// backward is counted as recorded.
//
// What it cannot see: operators that the client left out, work inside custom kernels that carry no formula, and taps
// or pairs that a kernel skips. What a causal kernel may skip is a field of its own, never subtracted.
//
// Sizes come from an untrusted socket. Everything is checked against limits first ([List.Check]), sums are exact whatever their
// size ([Number]), and no input makes the package panic.
package flops
