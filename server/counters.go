package server

import (
	"sync"
	"sync/atomic"

	"github.com/prov4ml/agent/record"
)

// Names of the counters that GetStatus publishes. They count since the agent started.
const (
	countSystemMetrics = "calls.log_system_metrics"
	countBatchFlops    = "calls.log_flops_per_batch"
	countEpochFlops    = "calls.log_flops_per_epoch"
	countStreamed      = "calls.streamed"
	countRing          = "calls.ring"
	countDescribed     = "calls.describe_run"
	countConnections   = "connections.accepted"
	countAbandoned     = "answers.abandoned"
	countPanics        = "panics"
	countSeqWaits      = "seq.waits"
	countSeqTimeouts   = "seq.timeouts"
	countDropped       = "client.dropped_calls"
	countBadParents    = "ignored.traceparent"

	refusedMessageBytes = "refused.message_bytes"
	refusedLarge        = "refused.large_messages"
	refusedObjects      = "refused.objects"
	refusedTextBytes    = "refused.text_bytes"
	refusedCount        = "refused.entries"
	refusedOperators    = "refused.operators"
	refusedDims         = "refused.dimensions"
	refusedValue        = "refused.value"
	refusedDecode       = "refused.decode"
	refusedFraming      = "refused.framing"
	refusedRing         = "refused.ring"
	refusedHTTP         = "refused.http"
	refusedRequest      = "refused.request"
	refusedRate         = "refused.calls_per_second"
	refusedConnections  = "refused.connections"
	refusedCaller       = "refused.caller"
	refusedParent       = "refused.parent"
	refusedMeasure      = "refused.measure"
	refusedCommit       = "refused.commit"
	closedIdle          = "connections.closed_idle"
	openConnections     = "connections.open"
)

// callCounter names the counter of a function's unary calls.
func callCounter(f record.Function) string {
	switch f {
	case record.Function_LOG_FLOPS_PER_BATCH:
		return countBatchFlops
	case record.Function_LOG_FLOPS_PER_EPOCH:
		return countEpochFlops
	default:
		return countSystemMetrics
	}
}

// counters maps a name to its count. Names are few and fixed, so a new one is rare.
type counters struct {
	byName sync.Map // string -> *atomic.Uint64
}

func (c *counters) add(name string, n uint64) {
	v, ok := c.byName.Load(name)
	if !ok {
		v, _ = c.byName.LoadOrStore(name, new(atomic.Uint64))
	}
	v.(*atomic.Uint64).Add(n)
}

func (c *counters) read(into map[string]uint64) {
	c.byName.Range(func(k, v any) bool {
		into[k.(string)] += v.(*atomic.Uint64).Load()
		return true
	})
}
