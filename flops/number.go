package flops

import (
	"fmt"
	"math/big"
	"math/bits"
)

// Number is an exact count >= 0 of any size: an epoch of a large model exceeds 64 bits. The zero value is 0. It is a
// value: operations return new ones, and copies are independent.
type Number struct {
	small uint64
	// Not nil when the count needs more than 64 bits; then small is unused. Never modified once set.
	large *big.Int
}

// NumberOf returns n as a Number.
func NumberOf(n uint64) Number { return Number{small: n} }

// maxDigits bounds the decimal numbers that ParseNumber takes.
const maxDigits = 80

// ParseNumber reads a decimal integer >= 0 of at most 80 digits, without sign, blanks or exponent.
func ParseNumber(s string) (Number, error) {
	if s == "" {
		return Number{}, fmt.Errorf("empty number: send decimal digits")
	}
	if len(s) > maxDigits {
		return Number{}, fmt.Errorf("number of %d digits: the limit is %d", len(s), maxDigits)
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return Number{}, fmt.Errorf("number %q: send decimal digits only, without sign or exponent", s)
		}
	}
	n, ok := new(big.Int).SetString(s, 10)
	if !ok {
		return Number{}, fmt.Errorf("number %q: send decimal digits only", s)
	}
	return fromBig(n), nil
}

func fromBig(n *big.Int) Number {
	if n.IsUint64() {
		return Number{small: n.Uint64()}
	}
	return Number{large: n}
}

// Big returns n as a big.Int that the caller owns.
func (n Number) Big() *big.Int {
	if n.large != nil {
		return new(big.Int).Set(n.large)
	}
	return new(big.Int).SetUint64(n.small)
}

// Add returns n + m.
func (n Number) Add(m Number) Number {
	if n.large == nil && m.large == nil {
		if sum, carry := bits.Add64(n.small, m.small, 0); carry == 0 {
			return Number{small: sum}
		}
	}
	a := n.Big()
	return fromBig(a.Add(a, m.Big()))
}

// Mul returns n * m.
func (n Number) Mul(m Number) Number {
	if n.large == nil && m.large == nil {
		if hi, lo := bits.Mul64(n.small, m.small); hi == 0 {
			return Number{small: lo}
		}
	}
	a := n.Big()
	return fromBig(a.Mul(a, m.Big()))
}

// Times returns n * k.
func (n Number) Times(k uint64) Number { return n.Mul(NumberOf(k)) }

// Minus returns n - m, and 0 where m is larger.
func (n Number) Minus(m Number) Number {
	if n.Compare(m) <= 0 {
		return Number{}
	}
	if n.large == nil {
		return Number{small: n.small - m.small}
	}
	a := n.Big()
	return fromBig(a.Sub(a, m.Big()))
}

// Over returns n / k rounded down; k must not be 0.
func (n Number) Over(k uint64) Number {
	if n.large == nil {
		return Number{small: n.small / k}
	}
	a := n.Big()
	return fromBig(a.Quo(a, new(big.Int).SetUint64(k)))
}

// Compare returns -1, 0 or 1 as n is less than, equal to or greater than m.
func (n Number) Compare(m Number) int {
	if n.large == nil && m.large == nil {
		switch {
		case n.small < m.small:
			return -1
		case n.small > m.small:
			return 1
		}
		return 0
	}
	return n.Big().Cmp(m.Big())
}

// Equal reports whether n and m are the same count; go-cmp uses it.
func (n Number) Equal(m Number) bool { return n.Compare(m) == 0 }

// IsZero reports whether n is 0.
func (n Number) IsZero() bool { return n.large == nil && n.small == 0 }

// Float64 returns the nearest float64; +Inf beyond its range.
func (n Number) Float64() float64 {
	if n.large == nil {
		return float64(n.small)
	}
	f, _ := new(big.Float).SetInt(n.large).Float64()
	return f
}

// String returns the decimal digits.
func (n Number) String() string {
	if n.large == nil {
		return fmt.Sprintf("%d", n.small)
	}
	return n.large.String()
}

// MarshalText returns the decimal digits, so that JSON carries the exact value as a string.
func (n Number) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText is the reverse of MarshalText; it takes any length.
func (n *Number) UnmarshalText(text []byte) error {
	parsed, ok := new(big.Int).SetString(string(text), 10)
	if !ok || parsed.Sign() < 0 {
		return fmt.Errorf("number %q: want decimal digits", text)
	}
	*n = fromBig(parsed)
	return nil
}

// product multiplies sizes that are known to be >= 0.
func product(sizes ...int64) Number {
	n := NumberOf(1)
	for _, s := range sizes {
		n = n.Times(uint64(s))
	}
	return n
}
