package names

// Prefix starts every attribute and metric that is not a name of OpenTelemetry's semantic conventions.
const Prefix = "prov4ml."

// TotalPrefix starts the attributes of training_run_end that hold the totals of the whole run.
const TotalPrefix = Prefix + "total."

// ParameterPrefix starts the attributes of the run's markers that the script gave (log_param).
const ParameterPrefix = Prefix + "param."

// ScopeName is the instrumentation scope of every span and metric: the agent. Its version is the agent's.
const ScopeName = "prov4ml-agent"

// SchemaURL names the release of the semantic conventions that the resource attributes and system.* metrics follow.
const SchemaURL = "https://opentelemetry.io/schemas/1.43.0"

// Names of spans. A log call's span has the name of its function.
const (
	SpanSystemMetrics = "log_system_metrics"
	SpanFlopsPerBatch = "log_flops_per_batch"
	SpanFlopsPerEpoch = "log_flops_per_epoch"

	SpanRun        = "training_run"
	SpanRunEnd     = "training_run_end"
	SpanSegment    = "segment"
	SpanSegmentEnd = "segment_end"
)

// Attributes that say what was called, by whom and when; they are no readings.
const (
	Context          = Prefix + "context"
	Step             = Prefix + "step"
	Label            = Prefix + "label"
	RunID            = Prefix + "run.id"
	Rank             = Prefix + "rank"
	Attempt          = Prefix + "attempt"
	Unavailable      = Prefix + "unavailable"
	WindowFirst      = Prefix + "window.first"
	WindowGap        = Prefix + "window.gap"
	WindowIncomplete = Prefix + "window.incomplete"
	Timestamp        = Prefix + "timestamp"
	LagSeconds       = Prefix + "lag_seconds"
	SegmentNumber    = Prefix + "segment.number"
	SegmentSpans     = Prefix + "segment.spans"
	EnclosingPIDs    = Prefix + "enclosing_pids"
	// Link says on a link what it leads to: run or caller.
	Link = Prefix + "link"
)

// Attributes of metric points only.
const (
	// FlopsScope is batch or epoch: which of the two functions a running total belongs to.
	FlopsScope = Prefix + "flops.scope"
	// RunEnd is true on the points of the remainder that training_run_end carries: a series of its own, so that adding up all
	// series of a sum gives the run's total.
	RunEnd = Prefix + "run_end"
	// StepCapped is true on the points of a record that came after the limit of distinct steps: their sums are running totals of
	// all such windows of the context.
	StepCapped = Prefix + "step_capped"
	// LoggedKey is the key that the script gave to log_metric.
	LoggedKey = Prefix + "logged.key"
	// LoggedValue is its value, on the span event.
	LoggedValue = Prefix + "logged.value"
	// DiskDirection is read or write.
	DiskDirection = "disk.io.direction"
	// Mountpoint is on the points of a file system that the agent was told to watch.
	Mountpoint = "system.filesystem.mountpoint"
)

// Metrics that are no row of the table.
const (
	MetricLogged = Prefix + "logged_metric"
	MetricStep   = Prefix + "step"
	// MetricLatency is a histogram of one window.
	MetricLatency = Prefix + "disk.latency"
)

// Events of spans.
const (
	EventLoggedMetric   = Prefix + "logged_metric"
	EventParameters     = Prefix + "parameters"
	EventDroppedCalls   = Prefix + "dropped_calls"
	EventOOMKill        = Prefix + "oom_kill"
	EventDroppedMetrics = Prefix + "dropped_metrics"
	EventFlopsOperator  = Prefix + "flops.operator"
	EventFlopsModule    = Prefix + "flops.module"
	EventFlopsDType     = Prefix + "flops.dtype"
	EventFlopsUnknown   = Prefix + "flops.unknown"
	EventFlopsCoverage  = Prefix + "flops.coverage"
)

// Attributes of the FLOPs events only.
const (
	FlopsOperator     = Prefix + "flops.operator"
	FlopsModule       = Prefix + "flops.module"
	FlopsDType        = Prefix + "flops.dtype"
	FlopsReason       = Prefix + "flops.reason"
	FlopsCount        = Prefix + "flops.count"
	FlopsShare        = Prefix + "flops.share"
	FlopsOpsExact     = Prefix + "flops.ops_exact"
	FlopsOpsDeclared  = Prefix + "flops.ops_declared"
	FlopsOpsEstimated = Prefix + "flops.ops_estimated"
	FlopsOpsZero      = Prefix + "flops.ops_zero"
	FlopsOpsUnknown   = Prefix + "flops.ops_unknown"
)

// Type of a span attribute.
type Type uint8

// The types of attributes.
const (
	Int Type = iota + 1
	Double
	Bool
	String
	// IntArray is an array on the span.
	IntArray
	// StringArray is an array on the span; a reading of this type holds one element a line.
	StringArray
)

// String gives the type as documents write it.
func (t Type) String() string {
	return [...]string{"?", "int", "double", "bool", "string", "int[]", "string[]"}[t]
}

// Kind says what a metric is on the wire.
type Kind uint8

// The kinds of metrics.
const (
	// NoMetric: the value is on the span only.
	NoMetric Kind = iota
	// Gauge: the value of that moment or window; not to be added up.
	Gauge
	// Sum: monotonic and cumulative.
	Sum
	// RunningSum is a Sum that the script's process keeps over all steps, so its points never carry a step as attribute.
	RunningSum
)

// String gives the kind as documents write it.
func (k Kind) String() string {
	return [...]string{"", "gauge", "sum", "sum"}[k]
}

// Scope says what a value is a value of.
type Scope uint8

// The scopes.
const (
	// Call is what was called, by whom and when.
	Call Scope = iota + 1
	// Tree is the calling process and all its descendants, exited and orphaned ones included.
	Tree
	// Node is the whole machine in the window. Two processes whose windows overlap report the same bytes twice.
	Node
	// Host is the state of the machine, as psutil and the original's functions show it.
	Host
	// GPU is the GPUs that the tree uses.
	GPU
	// Cgroup is one memory cgroup with all processes in it.
	Cgroup
	// Model is the arithmetic of the model, counted and not measured.
	Model
)

// String gives the scope as documents write it.
func (s Scope) String() string {
	return [...]string{"?", "call", "tree", "node", "host", "GPU", "cgroup", "model"}[s]
}

// Attribute is a fixed attribute of a metric's points.
type Attribute struct{ Key, Value string }

// Metric is what a value becomes as metric.
type Metric struct {
	Name string
	Unit string
	Kind Kind
	// Divisor turns the attribute's value into the metric's; 0 is read as 1.
	Divisor float64
	// Function restricts the metric to records of one function; empty = of each that emits the row's scope.
	Function string
	// Attributes are on each point.
	Attributes []Attribute
}

// Row is one span attribute and what it becomes as metric.
type Row struct {
	// Name without Prefix.
	Name string
	// Reading: the value is a reading of the record under Name. Otherwise it is a field of the record.
	Reading bool
	Type    Type
	// Unit of the attribute (UCUM).
	Unit    string
	Scope   Scope
	Metrics []Metric
	// Text says what it is.
	Text string
	// Bound says how exact it is; empty = exact.
	Bound string
}

// Attribute is the name of the span attribute.
func (r Row) Attribute() string { return Prefix + r.Name }

// Total is the name of the attribute of training_run_end with the run's total.
func (r Row) Total() string { return TotalPrefix + r.Name }

func call(name string, t Type, unit, text string) Row {
	return Row{Name: name, Type: t, Unit: unit, Scope: Call, Text: text}
}

func attribute(name string, t Type, unit string, scope Scope, text, bound string) Row {
	return Row{Name: name, Reading: true, Type: t, Unit: unit, Scope: scope, Text: text, Bound: bound}
}

// metric is a reading whose metric has its own name and unit.
func metric(kind Kind, name string, t Type, unit string, scope Scope, text, bound string, fixed ...Attribute) Row {
	r := attribute(name, t, unit, scope, text, bound)
	r.Metrics = []Metric{{Name: Prefix + name, Unit: unit, Kind: kind, Attributes: fixed}}
	return r
}

// percent is a reading in percent on the span, as the original has it, and a fraction as metric, as OpenTelemetry has it.
func percent(name, metricName string, scope Scope, text, bound string) Row {
	r := attribute(name, Double, "%", scope, text, bound)
	if metricName != "" {
		r.Metrics = []Metric{{Name: metricName, Unit: "1", Kind: Gauge, Divisor: 100}}
	}
	return r
}
