package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"mime"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	prov4mlv1 "github.com/prov4ml/agent/api/prov4ml/v1"
	"github.com/prov4ml/agent/api/prov4ml/v1/prov4mlv1connect"
)

const (
	// bodyTimeout bounds how long a unary request's body may take.
	bodyTimeout = 10 * time.Second
	// keepBufferBytes: a larger buffer is not kept for the next request.
	keepBufferBytes = 64 << 10
)

// ServeHTTP serves one request of any of the protocols. The log calls in JSON have a short way of their own.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := connOf(r.Context())
	if r.URL.Path == prov4mlv1connect.AgentServiceLogStreamProcedure && c.seq != nil {
		// Before begin: at no moment is the connection neither fresh nor a stream, or a unary call would not wait for its calls.
		c.seq.stream(1)
		defer c.seq.stream(-1)
	}
	c.begin()
	if !s.handlers.enter() {
		s.refuseHTTP(w, http.StatusServiceUnavailable, connect.CodeUnavailable, "the agent is stopping: try again")
		return
	}
	defer s.handlers.leave()
	defer func() {
		if p := recover(); p != nil {
			err := s.answer(s.panicked(p))
			// If the answer has begun, this adds nothing to it, and the caller sees it end in the middle.
			writeError(w, err)
		}
	}()

	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		s.refuseHTTP(w, http.StatusMethodNotAllowed, connect.CodeUnimplemented, r.Method+" is not supported: every method is a POST")
		return
	}
	contentType := r.Header.Get("Content-Type")
	if contentType == "application/json" && plain(r.Header) {
		if s.serveShort(w, r, c) {
			return
		}
	}
	s.serveConnect(w, r, c, contentType)
}

// plain says that the request asks for nothing of the Connect protocol beyond JSON in, JSON out.
func plain(h http.Header) bool {
	return h["Content-Encoding"] == nil && h["Connect-Timeout-Ms"] == nil && h["Connect-Protocol-Version"] == nil
}

// serveShort serves the unary calls that training makes, as JSON, with nothing but net/http. It returns false for the
// others.
func (s *Server) serveShort(w http.ResponseWriter, r *http.Request, c *conn) bool {
	switch r.URL.Path {
	case prov4mlv1connect.AgentServiceLogSystemMetricsProcedure:
		serveJSON(s, w, r, c, new(prov4mlv1.LogSystemMetricsRequest), s.logSystemMetrics)
	case prov4mlv1connect.AgentServiceLogFlopsPerBatchProcedure:
		serveJSON(s, w, r, c, new(prov4mlv1.LogFlopsPerBatchRequest), s.logFlopsPerBatch)
	case prov4mlv1connect.AgentServiceLogFlopsPerEpochProcedure:
		serveJSON(s, w, r, c, new(prov4mlv1.LogFlopsPerEpochRequest), s.logFlopsPerEpoch)
	case prov4mlv1connect.AgentServiceDescribeRunProcedure:
		serveJSON(s, w, r, c, new(prov4mlv1.DescribeRunRequest), s.describe)
	default:
		return false
	}
	return true
}

func serveJSON[Req, Res proto.Message](s *Server, w http.ResponseWriter, r *http.Request, c *conn, req Req,
	call func(context.Context, *conn, Req) (Res, error),
) {
	if err := s.readJSON(w, r, req); err != nil {
		writeError(w, s.answer(err))
		return
	}
	c.unary.Add(1)
	defer c.unary.Add(-1)
	res, err := call(r.Context(), c, req)
	if err != nil {
		writeError(w, s.answer(err))
		return
	}
	data, err := protojson.Marshal(res)
	if err != nil {
		writeError(w, s.answer(err))
		return
	}
	w.Header()["Content-Type"] = contentTypeJSON[:]
	// A caller that has gone has its call recorded all the same.
	_, _ = w.Write(data)
}

var contentTypeJSON = [...]string{"application/json"}

func (s *Server) readJSON(w http.ResponseWriter, r *http.Request, m proto.Message) error {
	rc := http.NewResponseController(w)
	if err := rc.SetReadDeadline(time.Now().Add(bodyTimeout)); err != nil {
		return err
	}
	buf := s.buffers.Get().(*bytes.Buffer)
	defer func() {
		if buf.Cap() <= keepBufferBytes {
			buf.Reset()
			s.buffers.Put(buf)
		}
	}()
	body := s.plainBody(r.Body)
	defer body.release()
	if _, err := buf.ReadFrom(body); err != nil {
		return bodyError(err)
	}
	if err := rc.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	defer s.decodeSlot(buf.Len())()
	if r := decodeJSON(buf.Bytes(), m); r != nil {
		return r
	}
	return nil
}

func bodyError(err error) error {
	var ce *connect.Error
	if errors.As(err, &ce) {
		return err
	}
	return refusef(refusedFraming, connect.CodeInvalidArgument, "the body could not be read to its end: %s", err)
}

// serveConnect serves every other request.
func (s *Server) serveConnect(w http.ResponseWriter, r *http.Request, c *conn, contentType string) {
	if _, pattern := s.mux.Handler(r); pattern == "" {
		s.refuseHTTP(w, http.StatusNotFound, connect.CodeUnimplemented, "there is nothing at "+clip(r.URL.Path)+": the service is /"+prov4mlv1connect.AgentServiceName+"/")
		return
	}
	stream := r.URL.Path == prov4mlv1connect.AgentServiceLogStreamProcedure
	enveloped, ok := encoding(contentType)
	switch {
	case !ok:
		s.refuseHTTP(w, http.StatusUnsupportedMediaType, connect.CodeInvalidArgument, "Content-Type is "+clip(contentType)+
			": for JSON it must be application/json")
		return
	case stream && !enveloped:
		s.refuseHTTP(w, http.StatusUnsupportedMediaType, connect.CodeInvalidArgument, "Content-Type is "+clip(contentType)+
			": LogStream takes a stream, application/connect+json or gRPC. A single call goes to LogSystemMetrics")
		return
	}
	rc := http.NewResponseController(w)
	unary := !stream && strings.HasPrefix(r.URL.Path, "/"+prov4mlv1connect.AgentServiceName+"/")
	if unary {
		c.unary.Add(1)
		defer c.unary.Add(-1)
		if err := rc.SetReadDeadline(time.Now().Add(bodyTimeout)); err != nil {
			writeError(w, s.answer(err))
			return
		}
	}
	if stream {
		control := &control{rc: rc}
		defer control.end()
		r = r.WithContext(context.WithValue(r.Context(), controlKey{}, control))
	}
	if enveloped {
		body := &envelopes{ReadCloser: r.Body, slot: slot{server: s}}
		if !unary {
			// A stream may be silent for as long as it likes, between two messages.
			body.extend = func() { _ = rc.SetReadDeadline(time.Now().Add(bodyTimeout)) }
			body.settle = func() {
				_ = rc.SetReadDeadline(time.Time{})
				s.extendDrain(r.Context())
			}
		}
		defer body.release()
		r.Body = body
	} else {
		body := s.plainBody(r.Body)
		defer body.release()
		r.Body = body
	}
	s.mux.ServeHTTP(w, r)
}

// encoding says whether a body of this type is a series of envelopes, and whether the agent knows the type at all.
func encoding(contentType string) (enveloped, known bool) {
	kind, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return false, false
	}
	switch {
	case kind == "application/json":
		charset := params["charset"]
		return false, charset == "" || strings.EqualFold(charset, "utf-8")
	case kind == "application/proto":
		return false, true
	case kind == "application/connect+json", kind == "application/connect+proto", strings.HasPrefix(kind, "application/grpc"):
		return true, true
	default:
		return false, false
	}
}

// clip keeps what a caller sent short enough to say it back.
func clip(s string) string {
	if len(s) > 100 {
		s = s[:100] + "..."
	}
	return `"` + strings.ToValidUTF8(s, "?") + `"`
}

// answer counts a refusal and gives it its status. An error that has one already has been counted.
func (s *Server) answer(err error) *connect.Error {
	var ce *connect.Error
	if errors.As(err, &ce) {
		return ce
	}
	var r *refusal
	if !errors.As(err, &r) {
		r = refusef(refusedMeasure, connect.CodeInternal, "%s", err)
	}
	s.counters.add(r.kind, 1)
	return connect.NewError(r.code, r)
}

// refuseHTTP refuses a request before it is known what protocol it speaks.
func (s *Server) refuseHTTP(w http.ResponseWriter, status int, code connect.Code, sentence string) {
	s.counters.add(refusedRequest, 1)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(errorJSON(code, sentence))
}

// writeError answers as the Connect protocol does: a status and {"code", "message"}.
func writeError(w http.ResponseWriter, err *connect.Error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(httpStatus(err.Code()))
	_, _ = w.Write(errorJSON(err.Code(), err.Message()))
}

func errorJSON(code connect.Code, sentence string) []byte {
	// Two strings cannot fail to marshal.
	data, _ := json.Marshal(struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}{code.String(), sentence})
	return data
}

// httpStatus is the Connect protocol's table.
func httpStatus(code connect.Code) int {
	switch code {
	case connect.CodeCanceled:
		return 499
	case connect.CodeInvalidArgument, connect.CodeFailedPrecondition, connect.CodeOutOfRange:
		return http.StatusBadRequest
	case connect.CodeDeadlineExceeded:
		return http.StatusGatewayTimeout
	case connect.CodeNotFound:
		return http.StatusNotFound
	case connect.CodeAlreadyExists, connect.CodeAborted:
		return http.StatusConflict
	case connect.CodePermissionDenied:
		return http.StatusForbidden
	case connect.CodeResourceExhausted:
		return http.StatusTooManyRequests
	case connect.CodeUnimplemented:
		return http.StatusNotImplemented
	case connect.CodeUnavailable:
		return http.StatusServiceUnavailable
	case connect.CodeUnauthenticated:
		return http.StatusUnauthorized
	default:
		return http.StatusInternalServerError
	}
}
