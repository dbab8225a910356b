package flops

import (
	"encoding/json"
	"math"
	"math/big"
	"testing"
)

func TestNumberAgainstBig(t *testing.T) {
	r := random(t, t.Name())
	value := func() *big.Int {
		switch r.IntN(4) {
		case 0:
			return big.NewInt(r.Int64N(5))
		case 1:
			return new(big.Int).SetUint64(math.MaxUint64 - uint64(r.IntN(3)))
		case 2:
			return new(big.Int).SetUint64(r.Uint64())
		}
		return new(big.Int).Lsh(new(big.Int).SetUint64(r.Uint64()), uint(r.IntN(200)))
	}
	for range 20_000 {
		a, b := value(), value()
		x, y := fromBig(new(big.Int).Set(a)), fromBig(new(big.Int).Set(b))
		if got, want := x.Add(y).String(), new(big.Int).Add(a, b).String(); got != want {
			t.Fatalf("%v + %v = %s, want %s", a, b, got, want)
		}
		if got, want := x.Mul(y).String(), new(big.Int).Mul(a, b).String(); got != want {
			t.Fatalf("%v * %v = %s, want %s", a, b, got, want)
		}
		difference := new(big.Int).Sub(a, b)
		if difference.Sign() < 0 {
			difference.SetInt64(0)
		}
		if got := x.Minus(y).String(); got != difference.String() {
			t.Fatalf("%v - %v = %s, want %v", a, b, got, difference)
		}
		if got, want := x.Compare(y), a.Cmp(b); got != want {
			t.Fatalf("compare %v with %v: %d, want %d", a, b, got, want)
		}
		if got, want := x.Over(7).String(), new(big.Int).Quo(a, big.NewInt(7)).String(); got != want {
			t.Fatalf("%v / 7 = %s, want %s", a, got, want)
		}
		if x.String() != a.String() || y.String() != b.String() {
			t.Fatalf("%v or %v was changed by an operation", a, b)
		}
		want, _ := new(big.Float).SetInt(a).Float64()
		if got := x.Float64(); got != want {
			t.Fatalf("%v is %g, want %g", a, got, want)
		}
	}
}

func TestNumberText(t *testing.T) {
	const digits = "340282366920938463463374607431768211456"
	var n Number
	if err := json.Unmarshal([]byte(`"`+digits+`"`), &n); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(n)
	if err != nil || string(text) != `"`+digits+`"` {
		t.Errorf("%s %v", text, err)
	}
	for _, bad := range []string{"", "-1", "x", "1.0"} {
		if err := new(Number).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if big1, _ := new(big.Int).SetString(digits, 10); n.Big().Cmp(big1) != 0 {
		t.Error("Big differs")
	}
	if (Number{}).String() != "0" || !(Number{}).IsZero() {
		t.Error("the zero value is not 0")
	}
}
