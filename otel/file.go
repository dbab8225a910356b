package otel

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/ptrace"
	colmetricpb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/prov4ml/agent/store"
)

// Names of the files in a directory of JSON lines.
const (
	TracesFile  = "traces.jsonl"
	MetricsFile = "metrics.jsonl"
)

// lineFile is a file of OTLP JSON lines, one request a line, as the collector's file exporter writes it.
//
// The cursor of such a destination holds the file's inode and its length. A batch is written, synced, and then the cursor
// moves; whatever a killed agent wrote behind the cursor's length is cut off at the next start and written again from the
// store. So each record is in the file exactly once and no line is torn.
//
// The worker's goroutine alone uses it.
type lineFile struct {
	path   string
	file   *os.File
	inode  uint64
	length int64
	// lines collects the batch that is being made.
	lines bytes.Buffer
	log   *slog.Logger
}

// fileState is what the cursor holds.
type fileState struct {
	Inode  uint64 `json:"inode"`
	Length int64  `json:"length"`
}

// openLineFile opens the file, makes it and its directory if they are missing, and cuts it back to the cursor.
func openLineFile(path string, cursor []byte, log *slog.Logger) (*lineFile, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of %s: %w", path, err)
	}
	f := &lineFile{path: path, log: log}
	if err := f.open(); err != nil {
		return nil, err
	}
	var at fileState
	if len(cursor) > 0 {
		if err := json.Unmarshal(cursor, &at); err != nil {
			return nil, errors.Join(fmt.Errorf("read the cursor of %s: %w", path, err), f.close())
		}
	}
	if err := f.cutBack(at); err != nil {
		return nil, errors.Join(err, f.close())
	}
	return f, nil
}

// open opens what is at the path now and locks it.
func (f *lineFile) open() error {
	file, err := os.OpenFile(f.path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("open the file of lines: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil && errors.Is(err, unix.EWOULDBLOCK) {
		_ = file.Close()
		return fmt.Errorf("%s: another prov4ml-agent writes this file; give each its own directory with --out", f.path)
	}
	inode, length, err := identify(file)
	if err != nil {
		_ = file.Close()
		return err
	}
	f.file, f.inode, f.length = file, inode, length
	return nil
}

func identify(file *os.File) (inode uint64, length int64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return 0, 0, fmt.Errorf("stat %s: %w", file.Name(), err)
	}
	return st.Ino, st.Size, nil
}

// cutBack removes what was written behind the cursor.
func (f *lineFile) cutBack(at fileState) error {
	switch {
	case at.Inode == f.inode && f.length >= at.Length:
		return f.truncate(at.Length)
	case at.Inode == f.inode:
		f.log.Warn("the file is shorter than what was delivered to it; the missing lines are in the store alone",
			"file", f.path, "length", f.length, "delivered", at.Length)
	}
	// Another file than the cursor's, or none was known: what is in there stays, up to its last whole line.
	end, err := f.lastLine()
	if err != nil {
		return err
	}
	return f.truncate(end)
}

// truncate cuts the file; later lines are appended there.
func (f *lineFile) truncate(length int64) error {
	if length == f.length {
		return nil
	}
	if err := f.file.Truncate(length); err != nil {
		return fmt.Errorf("cut %s back to %d bytes: %w", f.path, length, err)
	}
	f.length = length
	return nil
}

// lastLine is the offset behind the last newline; 0 when there is none.
func (f *lineFile) lastLine() (int64, error) {
	buf := make([]byte, 64<<10)
	for end := f.length; end > 0; {
		n := min(int64(len(buf)), end)
		if _, err := f.file.ReadAt(buf[:n], end-n); err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("read the end of %s: %w", f.path, err)
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			return end - n + int64(i) + 1, nil
		}
		end -= n
	}
	return 0, nil
}

// state is what the cursor keeps.
func (f *lineFile) state() []byte {
	b, err := json.Marshal(fileState{f.inode, f.length})
	if err != nil { // two integers
		panic(err)
	}
	return b
}

// reopen follows a file that was renamed or removed (logrotate).
func (f *lineFile) reopen() error {
	var st unix.Stat_t
	if err := unix.Stat(f.path, &st); err == nil && st.Ino == f.inode {
		return nil
	}
	old := f.file
	if err := f.open(); err != nil {
		return err
	}
	_ = old.Close()
	end, err := f.lastLine()
	if err != nil {
		return err
	}
	return f.truncate(end)
}

// append writes the lines and syncs them. After an error the file is as it was.
func (f *lineFile) append(lines []byte) error {
	_, err := f.file.Write(lines)
	if err == nil {
		err = unix.Fdatasync(int(f.file.Fd()))
	}
	length := f.length
	if err == nil {
		_, length, err = identify(f.file)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", f.path, err), f.restore())
	}
	f.length = length
	return nil
}

// restore takes back a write that failed half-way (a full disk).
func (f *lineFile) restore() error {
	if err := f.file.Truncate(f.length); err != nil {
		return fmt.Errorf("cut %s back to %d bytes: %w", f.path, f.length, err)
	}
	return nil
}

func (f *lineFile) close() error { return f.file.Close() }

// connection is a grpc connection that ends in the file: the exporters make their requests as for any receiver, and the
// interceptor makes a line of each. Nothing is ever dialled.
func (f *lineFile) connection() (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient(
		"passthrough:///file", // a path need not be a URL
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(f.intercept),
	)
	if err != nil {
		return nil, fmt.Errorf("make the connection to %s: %w", f.path, err)
	}
	return conn, nil
}

func (f *lineFile) intercept(ctx context.Context, _ string, req, _ any, _ *grpc.ClientConn, _ grpc.UnaryInvoker, _ ...grpc.CallOption) error {
	o := outcomeOf(ctx)
	order(req)
	m, ok := req.(proto.Message)
	if !ok {
		return fmt.Errorf("a request is a %T", req)
	}
	wire, err := proto.Marshal(m)
	if !o.admit(len(wire)) {
		return errTooLarge
	}
	var line []byte
	if err == nil {
		line, err = lineOf(req, wire)
	}
	if err != nil {
		o.code, o.err = codes.Internal, fmt.Errorf("make a line of a request: %w", err)
		return o.err
	}
	f.lines.Write(line)
	f.lines.WriteByte('\n')
	return nil
}

// lineOf writes a request as the collector does: ids in hex, enumerations as numbers, 64-bit integers as strings. wire is the
// request's wire form, which is that of the data that it carries.
func lineOf(req any, wire []byte) ([]byte, error) {
	switch req.(type) {
	case *coltracepb.ExportTraceServiceRequest:
		data, err := (&ptrace.ProtoUnmarshaler{}).UnmarshalTraces(wire)
		if err != nil {
			return nil, fmt.Errorf("read a request of spans: %w", err)
		}
		return (&ptrace.JSONMarshaler{}).MarshalTraces(data)
	case *colmetricpb.ExportMetricsServiceRequest:
		data, err := (&pmetric.ProtoUnmarshaler{}).UnmarshalMetrics(wire)
		if err != nil {
			return nil, fmt.Errorf("read a request of metrics: %w", err)
		}
		return (&pmetric.JSONMarshaler{}).MarshalMetrics(data)
	default:
		return nil, fmt.Errorf("a request is a %T", req)
	}
}

// writeFile writes the batch's lines, for as long as that takes.
func (w *worker) writeFile(ctx context.Context, batch []store.Stored) error {
	w.file.lines.Reset()
	for rest := batch; len(rest) > 0; {
		n := min(len(rest), w.chunk())
		for _, e := range w.exporter.encode(records(rest[:n])) {
			if err := w.line(ctx, e); err != nil {
				return err
			}
		}
		rest = rest[n:]
	}
	for failures := 0; ; {
		err := w.appendLines(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil || errors.Is(err, store.ErrClosed) {
			return err
		}
		failures++
		w.count(func(s *Stats) { s.Retries++ })
		w.fail(slog.LevelError, "cannot write the file; the records wait in the store", err)
		w.flush.wait(ctx, backOff(w.retryInitial, w.retryMax, failures))
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	w.succeed(&encoded{records: records(batch)}, &outcome{})
	return nil
}

// line makes the line of one request.
func (w *worker) line(ctx context.Context, e *encoded) error {
	out, err := w.export(ctx, e, limitOf(e))
	if err != nil {
		return err
	}
	switch {
	case out.tooLarge:
		for _, half := range w.halves(e) {
			for _, e := range w.exporter.encode(half) {
				if err := w.line(ctx, e); err != nil {
					return err
				}
			}
		}
	case out.err != nil:
		w.refuse(e, out)
	}
	return nil
}

// appendLines writes the lines to the file at the path. When that is not as the cursor knows it, the cursor learns of it
// first, so that an agent that is killed in between finds where to cut.
func (w *worker) appendLines(ctx context.Context) error {
	if err := w.file.reopen(); err != nil {
		return err
	}
	if state := w.file.state(); !bytes.Equal(w.reader.State(), state) {
		if err := w.reader.Advance(ctx, w.reader.Seq(), state); err != nil {
			return fmt.Errorf("move the cursor of %s: %w", w.file.path, err)
		}
	}
	if w.file.lines.Len() == 0 {
		return nil
	}
	return w.file.append(w.file.lines.Bytes())
}
