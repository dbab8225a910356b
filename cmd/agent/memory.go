package main

import (
	"os"
	"runtime/debug"
)

// garbagePercent is how much garbage the heap may hold, relative to what lives. Go's own value, 100, makes the agent as large with 64
// logging processes as its budget is; what lives is small, so that collecting twice as often costs little.
const garbagePercent = 50

// collectEarly sets it, unless the user has chosen a value.
func collectEarly() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbagePercent)
	}
}
