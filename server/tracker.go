package server

import (
	"context"

	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/runs"
)

// Tracker measures and records. It is *runs.Tracker; its methods are called from many goroutines.
type Tracker interface {
	// Describe takes what a process says about itself.
	Describe(ctx context.Context, caller runs.Caller, d runs.Description) (runs.Info, error)
	// Log measures now and enqueues the record. wait returns the record's number once it is committed.
	Log(caller runs.Caller, call runs.Call) (rec *record.LogCall, wait func(context.Context) (int64, error), err error)
	// Hold keeps the caller's run open, should it exit, until what it has written has been read.
	Hold(caller runs.Caller) (release func())
	// Status fills GetStatus.
	Status() runs.Status
}

var _ Tracker = (*runs.Tracker)(nil)
