package record

// Names of the events of a FLOPs call, which say what its number is made of, and of their attributes. Both become names of the
// span's events with the prefix "prov4ml."; what they mean stands in otel/names.
const (
	EventFlopsOperator = "flops.operator"
	EventFlopsModule   = "flops.module"
	EventFlopsDType    = "flops.dtype"
	EventFlopsUnknown  = "flops.unknown"
	EventFlopsCoverage = "flops.coverage"

	// Name of an operator, module or data type.
	EventOperator = "flops.operator"
	EventModule   = "flops.module"
	EventDType    = "flops.dtype"
	// Why an operator could not be counted.
	EventReason = "flops.reason"
	// Executions.
	EventCount = "flops.count"
	// Share of forward and backward together, 0 to 1.
	EventShare = "flops.share"
	// Executions by how well their cost is known.
	EventOpsExact     = "flops.ops_exact"
	EventOpsDeclared  = "flops.ops_declared"
	EventOpsEstimated = "flops.ops_estimated"
	EventOpsZero      = "flops.ops_zero"
	EventOpsUnknown   = "flops.ops_unknown"
)
