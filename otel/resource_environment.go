package otel

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/sdk/resource"
)

// ResourceFromEnvironment returns the resource attributes of OTEL_RESOURCE_ATTRIBUTES, as text. The service's name is not
// among them: the run's name is.
func ResourceFromEnvironment() (map[string]string, error) {
	from, err := resource.New(context.Background(), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("read OTEL_RESOURCE_ATTRIBUTES (key=value,key=value): %w", err)
	}
	attributes := map[string]string{}
	for _, kv := range from.Attributes() {
		if kv.Key != "service.name" {
			attributes[string(kv.Key)] = kv.Value.String()
		}
	}
	return attributes, nil
}
