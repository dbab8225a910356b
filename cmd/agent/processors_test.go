package main

import (
	"runtime"
	"testing"
)

func TestProcessorsAreOneButInBursts(t *testing.T) {
	before := runtime.GOMAXPROCS(4)
	defer runtime.GOMAXPROCS(before)
	is := func(want int) {
		t.Helper()
		if got := runtime.GOMAXPROCS(0); got != want {
			t.Errorf("%d processors, want %d", got, want)
		}
	}
	t.Setenv("GOMAXPROCS", "")
	p := limitProcessors()
	is(1)
	first, second := p.burst(), p.burst()
	is(4)
	first()
	is(4)
	second()
	is(1)

	// The user's number is left alone.
	runtime.GOMAXPROCS(3)
	t.Setenv("GOMAXPROCS", "3")
	p = limitProcessors()
	is(3)
	over := p.burst()
	is(3)
	over()
	is(3)
}
