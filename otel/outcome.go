package otel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	colmetricpb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// outcome is what became of one request. The exporters hide the answer's code and partial success in errors of their own,
// so an interceptor of the connection writes it down; the context of the request leads to it.
type outcome struct {
	// limit is the largest request that may be sent, in bytes; 0 = any.
	limit int

	// called: the exporter came as far as the connection.
	called bool
	size   int
	code   codes.Code
	err    error
	// rejected and message are the receiver's partial success.
	rejected int64
	message  string
	// retryAfter is the receiver's RetryInfo.
	retryAfter time.Duration
	tooLarge   bool
}

type verdict int

const (
	delivered verdict = iota
	// retry: it may be taken later.
	retry
	// refused: it will never be taken.
	refused
	// exhausted: too much at once, perhaps.
	exhausted
	// oversized: larger than a receiver takes by default; not sent.
	oversized
	// unimplemented: the receiver does not know the signal.
	unimplemented
)

// verdict follows the OTLP specification's table of answers, with one exception: missing rights are repeated, slowly, since
// they are mostly repaired on the receiver's side, and until then the records are safe in the store.
func (o *outcome) verdict() verdict {
	if o.tooLarge {
		return oversized
	}
	switch o.code {
	case codes.OK:
		return delivered
	case codes.Canceled, codes.DeadlineExceeded, codes.Aborted, codes.OutOfRange, codes.Unavailable, codes.DataLoss,
		codes.Unauthenticated, codes.PermissionDenied:
		return retry
	case codes.ResourceExhausted:
		if o.retryAfter > 0 {
			return retry
		}
		return exhausted
	case codes.Unimplemented:
		return unimplemented
	default:
		return refused
	}
}

type outcomeKey struct{}

func withOutcome(ctx context.Context, o *outcome) context.Context {
	return context.WithValue(ctx, outcomeKey{}, o)
}

// outcomeOf finds the outcome of the request that ctx belongs to; one that nobody reads if there is none.
func outcomeOf(ctx context.Context) *outcome {
	if o, ok := ctx.Value(outcomeKey{}).(*outcome); ok {
		return o
	}
	return &outcome{}
}

// admit notes that a request of size bytes came to the connection, and says whether it may pass.
func (o *outcome) admit(size int) bool {
	o.called, o.size = true, size
	o.tooLarge = o.limit > 0 && o.size > o.limit
	return !o.tooLarge
}

var errTooLarge = errors.New("the request is larger than a receiver takes by default")

// observe is the interceptor of an OTLP connection.
func observe(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	o := outcomeOf(ctx)
	m, ok := req.(proto.Message)
	if !ok {
		return fmt.Errorf("a request is a %T", req)
	}
	if !o.admit(proto.Size(m)) {
		return errTooLarge
	}
	order(req)
	err := invoke(ctx, method, req, reply, cc, opts...)
	s := status.Convert(err)
	o.code, o.err = s.Code(), err
	for _, detail := range s.Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			// A receiver that gives no time still says that it is worth to come again.
			o.retryAfter = max(info.GetRetryDelay().AsDuration(), time.Nanosecond)
		}
	}
	switch r := reply.(type) {
	case *coltracepb.ExportTraceServiceResponse:
		o.rejected, o.message = r.GetPartialSuccess().GetRejectedSpans(), r.GetPartialSuccess().GetErrorMessage()
	case *colmetricpb.ExportMetricsServiceResponse:
		o.rejected, o.message = r.GetPartialSuccess().GetRejectedDataPoints(), r.GetPartialSuccess().GetErrorMessage()
	}
	return err
}

// order gives the resources of a request an order: the exporter takes them from a map.
func order(req any) {
	r, ok := req.(*coltracepb.ExportTraceServiceRequest)
	if !ok || len(r.GetResourceSpans()) < 2 {
		return
	}
	first := func(rs *tracepb.ResourceSpans) string {
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				return string(s.GetTraceId()) + string(s.GetSpanId())
			}
		}
		return ""
	}
	slices.SortFunc(r.ResourceSpans, func(a, b *tracepb.ResourceSpans) int {
		x, y := first(a), first(b)
		switch {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	})
}
