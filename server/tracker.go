package server

import (
	"context"
	"time"

	"github.com/prov4ml/agent/probes"
	"github.com/prov4ml/agent/record"
)

// Caller is the process at the other end of a connection.
type Caller struct {
	probes.Process
	UID, GID uint32
}

// Parent is the caller's parent.
func (c Caller) Parent() (Caller, error) { return Caller{}, nil }

// Call is one log call as it goes to the Tracker.
type Call struct {
	Function     record.Function
	Context      *string
	Step         *int64
	Label        string
	Timestamp    *int64
	Lag          time.Duration
	Traceparent  string
	Readings     []*record.Reading
	Unavailable  []string
	Events       []*record.Event
	DroppedCalls uint64
}

// Description is what a process says about its run.
type Description struct {
	Name          string
	Environment   map[string]string
	Script        string
	Attributes    map[string]string
	Metrics       []*record.LoggedMetric
	End           bool
	Traceparent   string
	ClientVersion string
}

// Info is the answer to a Description.
type Info struct {
	RunID string
}

// Tracker measures and records. It is runs.Tracker; its methods are called from many goroutines.
type Tracker interface {
	// Describe takes what a process says about itself.
	Describe(ctx context.Context, caller Caller, d Description) (Info, error)
	// Log measures now and enqueues the record. wait returns the record's number once it is committed.
	Log(caller Caller, call Call) (rec *record.LogCall, wait func(context.Context) (int64, error), err error)
}
