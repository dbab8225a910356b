package otel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/go-logr/logr"
	upstream "go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"google.golang.org/grpc"

	"github.com/prov4ml/agent/store"
)

// DestinationOTLP is the name of the receiver that the environment names, in cursors and counters.
const DestinationOTLP = "otlp"

// Defaults of Config.
const (
	DefaultLinger       = 500 * time.Millisecond
	DefaultRetryInitial = 500 * time.Millisecond
	DefaultRetryMax     = 30 * time.Second
)

// Config says what is delivered where.
type Config struct {
	// Store holds the records and the cursors.
	Store *store.Store
	// Version is the agent's.
	Version string
	// MetricsStep is how metric points show their step; empty = StepAttribute.
	MetricsStep StepMode
	// OTLP is the receiver that the environment names; the zero value is none.
	OTLP Environment
	// Directory gets TracesFile and MetricsFile; empty = no files.
	Directory string
	// Linger is how long records gather for one request after one that was not full; 0 = DefaultLinger. A file waits twice as
	// long, since each of its batches is synced.
	Linger time.Duration
	// RetryInitial and RetryMax bound the wait after a failure: it doubles from one to the other. 0 = 500 ms and 30 s.
	RetryInitial, RetryMax time.Duration
	// Burst is called before many records are made into requests, and what it returns afterwards, or when a receiver has to be waited
	// for; nil = nobody needs to know.
	Burst func() (over func())
	// Log takes what the operator should know; nil = nothing is logged.
	Log *slog.Logger
}

func (c *Config) setDefaults() {
	if c.MetricsStep == "" {
		c.MetricsStep = StepAttribute
	}
	if c.Linger == 0 {
		c.Linger = DefaultLinger
	}
	if c.RetryInitial == 0 {
		c.RetryInitial = DefaultRetryInitial
	}
	if c.RetryMax == 0 {
		c.RetryMax = DefaultRetryMax
	}
	if c.Burst == nil {
		c.Burst = func() func() { return func() {} }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// Validate names the first field that cannot be.
func (c Config) Validate() error {
	switch {
	case c.Store == nil:
		return errors.New("otel: Store is nil")
	case c.Linger < 0:
		return fmt.Errorf("otel: Linger is %v; it must not be negative", c.Linger)
	case c.RetryInitial < 0 || c.RetryMax < 0:
		return fmt.Errorf("otel: RetryInitial is %v and RetryMax %v; they must not be negative", c.RetryInitial, c.RetryMax)
	case c.MetricsStep != "":
		return c.MetricsStep.Validate()
	}
	return nil
}

// Pipeline delivers records. Its methods may be called from any goroutine.
type Pipeline struct {
	config  Config
	workers []*worker
	flush   *flush
	stop    context.CancelFunc
	done    sync.WaitGroup
	conns   []*grpc.ClientConn
	closed  sync.Once
}

// Start opens the files, makes the exporters and begins to deliver. A receiver that is down is no error.
func Start(ctx context.Context, config Config) (*Pipeline, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config.setDefaults()
	// The exporters log by themselves, to standard error, what they do not understand of the variables. ReadEnvironment has said
	// it already, or has understood it.
	upstream.SetLogger(logr.Discard())
	p := &Pipeline{config: config, flush: newFlush(), stop: func() {}}
	if err := p.prepare(ctx); err != nil {
		return nil, errors.Join(err, p.Close(ctx))
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	p.stop = stop
	for _, w := range p.workers {
		p.done.Go(func() { w.run(run) })
	}
	return p, nil
}

func (p *Pipeline) prepare(ctx context.Context) error {
	if p.config.Directory != "" {
		dir, err := filepath.Abs(p.config.Directory)
		if err != nil {
			return fmt.Errorf("find the directory of the files: %w", err)
		}
		if err := p.addFile(ctx, dir, signalTraces, TracesFile); err != nil {
			return err
		}
		if err := p.addFile(ctx, dir, signalMetrics, MetricsFile); err != nil {
			return err
		}
	}
	env := p.config.OTLP
	if env.Traces.enabled {
		options := []otlptracegrpc.Option{otlptracegrpc.WithDialOption(dialOptions()...)}
		if env.Traces.target != "" {
			options = append(options, otlptracegrpc.WithEndpoint(env.Traces.target))
		}
		x, err := newTraceExporter(ctx, p.config.Version, options...)
		if err != nil {
			return err
		}
		if err := p.add(DestinationOTLP, signalTraces, x, nil); err != nil {
			return err
		}
	}
	if env.Metrics.enabled {
		options := []otlpmetricgrpc.Option{otlpmetricgrpc.WithDialOption(dialOptions()...)}
		if env.Metrics.target != "" {
			options = append(options, otlpmetricgrpc.WithEndpoint(env.Metrics.target))
		}
		x, err := newMetricExporter(ctx, p.config.Version, p.config.MetricsStep, options...)
		if err != nil {
			return err
		}
		return p.add(DestinationOTLP, signalMetrics, x, nil)
	}
	return nil
}

// fileTimeout replaces the variables' time-out of a request: a line that is slow to make is not to be given up.
const fileTimeout = time.Hour

// addFile adds one of the two files.
func (p *Pipeline) addFile(ctx context.Context, dir, signal, name string) error {
	reader, err := p.config.Store.Reader(dir, signal)
	if err != nil {
		return err
	}
	f, err := openLineFile(filepath.Join(dir, name), reader.State(), p.config.Log)
	if err != nil {
		return err
	}
	conn, err := f.connection()
	if err != nil {
		return errors.Join(err, f.close())
	}
	p.conns = append(p.conns, conn)
	var x exporter
	if signal == signalTraces {
		x, err = newTraceExporter(ctx, p.config.Version, otlptracegrpc.WithGRPCConn(conn), otlptracegrpc.WithTimeout(fileTimeout))
	} else {
		x, err = newMetricExporter(ctx, p.config.Version, p.config.MetricsStep, otlpmetricgrpc.WithGRPCConn(conn), otlpmetricgrpc.WithTimeout(fileTimeout))
	}
	if err != nil {
		return errors.Join(err, f.close())
	}
	return p.add(dir, signal, x, f)
}

func (p *Pipeline) add(destination, signal string, x exporter, f *lineFile) error {
	w := &worker{
		destination:  destination,
		signal:       signal,
		exporter:     x,
		file:         f,
		linger:       p.config.Linger,
		burst:        p.config.Burst,
		retryInitial: p.config.RetryInitial,
		retryMax:     p.config.RetryMax,
		log:          p.config.Log,
		flush:        p.flush,
		stats:        Stats{Destination: destination, Signal: signal},
	}
	if f != nil {
		w.linger *= 2
	}
	p.workers = append(p.workers, w)
	var err error
	w.reader, err = p.config.Store.Reader(destination, signal)
	return err
}

// Stats says how each signal's delivery to each destination is doing.
func (p *Pipeline) Stats() []Stats {
	out := make([]Stats, 0, len(p.workers))
	for _, w := range p.workers {
		out = append(out, w.snapshot())
	}
	return out
}

// ErrUndelivered says that Flush ended before everything was delivered; the records stay in the store.
var ErrUndelivered = errors.New("not everything was delivered")

// Flush waits until all that the store holds now is delivered, or refused for good. When ctx ends first it says with
// ErrUndelivered what is left where, and why.
func (p *Pipeline) Flush(ctx context.Context) error {
	done := p.flush.hurry()
	defer done()
	for {
		progressed := p.flush.progressed()
		behind := p.behind()
		if len(behind) == 0 {
			return nil
		}
		select {
		case <-progressed:
		case <-ctx.Done():
			var err error
			for _, b := range behind {
				err = errors.Join(err, b)
			}
			return err
		}
	}
}

// behind says which workers have records before them.
func (p *Pipeline) behind() []error {
	var out []error
	for _, u := range p.config.Store.Stats().Undelivered {
		if u.Records == 0 {
			continue
		}
		for _, w := range p.workers {
			if w.destination != u.Destination || w.signal != u.Signal {
				continue
			}
			err := fmt.Errorf("%w: %d records wait for %s %s", ErrUndelivered, u.Records, u.Destination, u.Signal)
			if last := w.snapshot().LastError; last != "" {
				err = fmt.Errorf("%w: %s", err, last)
			}
			out = append(out, err)
		}
	}
	return out
}

// Close ends the workers, waits for them, and closes connections and files. What is not delivered stays in the store, which
// must still be open. A second call does nothing.
func (p *Pipeline) Close(ctx context.Context) error {
	var err error
	p.closed.Do(func() {
		p.stop()
		p.done.Wait()
		for _, w := range p.workers {
			err = errors.Join(err, w.exporter.shutdown(ctx))
			if w.file != nil {
				err = errors.Join(err, w.file.close())
			}
		}
		for _, c := range p.conns {
			err = errors.Join(err, c.Close())
		}
	})
	return err
}
