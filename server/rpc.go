package server

import (
	"compress/gzip"
	"context"
	"net/http"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
	"connectrpc.com/grpcreflect"

	prov4mlv1 "github.com/prov4ml/agent/api/prov4ml/v1"
	"github.com/prov4ml/agent/api/prov4ml/v1/prov4mlv1connect"
)

// minCompressBytes: below it gzip makes an answer longer.
const minCompressBytes = 1 << 10

// newMux makes the handlers of gRPC, gRPC-Web and Connect: the agent's service, health and reflection.
func (s *Server) newMux() *http.ServeMux {
	mux := http.NewServeMux()
	// A route for each method, so that a misspelt one gets the sentence that any wrong path gets, and not connect's plain 404.
	prefix, handler := prov4mlv1connect.NewAgentServiceHandler(service{s}, s.handlerOptions()...)
	methods := prov4mlv1.File_prov4ml_v1_agent_proto.Services().ByName("AgentService").Methods()
	for i := range methods.Len() {
		mux.Handle(prefix+string(methods.Get(i).Name()), handler)
	}
	mux.Handle(grpchealth.NewHandler(s.health))
	reflector := grpcreflect.NewStaticReflector(prov4mlv1connect.AgentServiceName, grpchealth.HealthV1ServiceName)
	mux.Handle(grpcreflect.NewHandlerV1(reflector))
	mux.Handle(grpcreflect.NewHandlerV1Alpha(reflector))
	return mux
}

func (s *Server) handlerOptions() []connect.HandlerOption {
	return []connect.HandlerOption{
		connect.WithCodec(jsonCodec{"json", s}),
		connect.WithCodec(jsonCodec{"json; charset=utf-8", s}),
		connect.WithCodec(protoCodec{s}),
		connect.WithCompression("gzip",
			func() connect.Decompressor { return &gunzip{server: s} },
			func() connect.Compressor { return gzip.NewWriter(nil) },
		),
		connect.WithCompressMinBytes(minCompressBytes),
		connect.WithRecover(func(_ context.Context, _ connect.Spec, _ http.Header, p any) error {
			return s.answer(s.panicked(p))
		}),
	}
}

// service is the agent's service as connect calls it.
type service struct{ s *Server }

var _ prov4mlv1connect.AgentServiceHandler = service{}

// respond makes connect's answer of a call's.
func respond[Res any](s *Server, res *Res, err error) (*connect.Response[Res], error) {
	if err != nil {
		return nil, s.answer(err)
	}
	return connect.NewResponse(res), nil
}

func (v service) LogSystemMetrics(ctx context.Context, req *connect.Request[prov4mlv1.LogSystemMetricsRequest]) (*connect.Response[prov4mlv1.LogResponse], error) {
	res, err := v.s.logSystemMetrics(ctx, connOf(ctx), req.Msg)
	return respond(v.s, res, err)
}

func (v service) LogFlopsPerBatch(ctx context.Context, req *connect.Request[prov4mlv1.LogFlopsPerBatchRequest]) (*connect.Response[prov4mlv1.LogResponse], error) {
	res, err := v.s.logFlopsPerBatch(ctx, connOf(ctx), req.Msg)
	return respond(v.s, res, err)
}

func (v service) LogFlopsPerEpoch(ctx context.Context, req *connect.Request[prov4mlv1.LogFlopsPerEpochRequest]) (*connect.Response[prov4mlv1.LogResponse], error) {
	res, err := v.s.logFlopsPerEpoch(ctx, connOf(ctx), req.Msg)
	return respond(v.s, res, err)
}

func (v service) DescribeRun(ctx context.Context, req *connect.Request[prov4mlv1.DescribeRunRequest]) (*connect.Response[prov4mlv1.DescribeRunResponse], error) {
	res, err := v.s.describe(ctx, connOf(ctx), req.Msg)
	return respond(v.s, res, err)
}

func (v service) GetStatus(context.Context, *connect.Request[prov4mlv1.GetStatusRequest]) (*connect.Response[prov4mlv1.GetStatusResponse], error) {
	return connect.NewResponse(v.s.Status()), nil
}

func (v service) LogStream(ctx context.Context, stream *connect.ClientStream[prov4mlv1.LogStreamRequest]) (*connect.Response[prov4mlv1.LogStreamResponse], error) {
	res, err := v.s.logStream(ctx, connOf(ctx), stream.Conn())
	return respond(v.s, res, err)
}
