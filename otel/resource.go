package otel

import (
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/resource"
	"google.golang.org/protobuf/proto"

	"github.com/prov4ml/agent/otel/names"
	"github.com/prov4ml/agent/record"
)

// processKey names a process for ever.
type processKey struct {
	bootID     string
	pid        int32
	startTicks uint64
}

func keyOf(p *record.Process) processKey {
	return processKey{p.GetBootId(), p.GetPid(), p.GetStartTicks()}
}

// resources keeps the resource of each process that was seen lately: making one sorts its attributes, which would cost more
// than the rest of a span.
type resources map[processKey]described

type described struct {
	process  *record.Process
	resource *resource.Resource
}

// maxResources bounds the cache: more processes than a node has GPUs and workers that log.
const maxResources = 1024

// of returns the resource of the process, the same pointer for the same description.
func (r resources) of(p *record.Process) *resource.Resource {
	key := keyOf(p)
	if d, ok := r[key]; ok && sameProcess(d.process, p) {
		return d.resource
	}
	if len(r) >= maxResources {
		clear(r)
	}
	made := newResource(p)
	r[key] = described{p, made}
	return made
}

// sameProcess says whether two descriptions are equal.
func sameProcess(a, b *record.Process) bool { return a == b || proto.Equal(a, b) }

// newResource describes the training process. The record's own fields win over the further attributes.
func newResource(p *record.Process) *resource.Resource {
	attrs := make([]attribute.KeyValue, 0, len(p.GetResource())+10)
	for k, v := range p.GetResource() {
		if k != "" {
			attrs = append(attrs, attribute.String(k, v))
		}
	}
	text := func(key, value string) {
		if value != "" {
			attrs = append(attrs, attribute.String(key, value))
		}
	}
	text(names.ServiceName, p.GetServiceName())
	text(names.ServiceInstanceID, instance(p))
	text(names.HostName, p.GetHostName())
	attrs = append(attrs, attribute.Int(names.ProcessPID, int(p.GetPid())))
	if ns := p.GetStartUnixNanos(); ns > 0 {
		text(names.ProcessCreationTime, time.Unix(0, ns).UTC().Format(time.RFC3339Nano))
	}
	text(names.ContainerID, p.GetContainerId())
	text(names.PodUID, p.GetPodUid())
	attrs = append(attrs, identity(p)...)
	// Of equal keys the last wins.
	return resource.NewWithAttributes(names.SchemaURL, attrs...)
}

// instance is unique across runs: the run's id and which of its processes this is.
func instance(p *record.Process) string {
	n := p.GetRank()
	if n < 0 {
		n = p.GetPid()
	}
	return p.GetRunId() + "/" + strconv.Itoa(int(n))
}

// identity is what joins the spans and metrics of a run's processes.
func identity(p *record.Process) []attribute.KeyValue {
	attrs := make([]attribute.KeyValue, 0, 3)
	if p.GetRunId() != "" {
		attrs = append(attrs, attribute.String(names.RunID, p.GetRunId()))
	}
	if p.GetRank() >= 0 {
		attrs = append(attrs, attribute.Int(names.Rank, int(p.GetRank())))
	}
	return append(attrs, attribute.Int(names.Attempt, int(p.GetAttempt())))
}
