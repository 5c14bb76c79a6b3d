// Prints the official definition of CRI v1, one sorted line per field, enum value and call, for
// cri/tests/wire.rs to hold against ours: go run . > ../testdata/cri-api-v0.36.3.txt
package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var lines []string

func add(format string, values ...any) {
	lines = append(lines, fmt.Sprintf(format, values...))
}

func enum(scope string, e *descriptorpb.EnumDescriptorProto) {
	for _, value := range e.Value {
		add("enum %s.%s.%s = %d", scope, e.GetName(), value.GetName(), value.GetNumber())
	}
}

func message(scope string, m *descriptorpb.DescriptorProto) {
	name := scope + "." + m.GetName()
	add("message %s", name)
	for _, f := range m.Field {
		add("field %s.%s = %d %s %s %s", name, f.GetName(), f.GetNumber(), f.GetLabel(), f.GetType(), f.GetTypeName())
	}
	for _, nested := range m.NestedType {
		message(name, nested)
	}
	for _, e := range m.EnumType {
		enum(name, e)
	}
}

func main() {
	file := protodesc.ToFileDescriptorProto((&v1.VersionRequest{}).ProtoReflect().Descriptor().ParentFile())
	for _, m := range file.MessageType {
		message(file.GetPackage(), m)
	}
	for _, e := range file.EnumType {
		enum(file.GetPackage(), e)
	}
	for _, s := range file.Service {
		for _, m := range s.Method {
			add("rpc %s.%s(%s) %s stream=%t", s.GetName(), m.GetName(), m.GetInputType(), m.GetOutputType(), m.GetServerStreaming())
		}
	}
	slices.Sort(lines)
	fmt.Fprintln(os.Stdout, strings.Join(lines, "\n"))
}
