// Control-plane holds what a cluster needs besides its nodes, one program per role: the first argument, or the
// name it is called by, says which. One executable shares most of its code between them, so it builds and links
// once. The kubelet is an executable of its own, since its memory is measured.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	_ "time/tzdata"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

// The components that are commands of cobra, by role.
var components = map[string]func() *cobra.Command{
	"kube-apiserver":          func() *cobra.Command { return apiserver.NewAPIServerCommand() },
	"kube-controller-manager": func() *cobra.Command { return controllermanager.NewControllerManagerCommand() },
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kube-proxy":              func() *cobra.Command { return proxy.NewProxyCommand() },
}

func main() {
	role := filepath.Base(os.Args[0])
	if role == "control-plane" && len(os.Args) > 1 {
		role = os.Args[1]
		os.Args = os.Args[1:]
	}
	switch role {
	case "etcd":
		etcdmain.Main(os.Args)
	case "serving-approver":
		if len(os.Args) != 2 {
			fmt.Fprintln(os.Stderr, "usage: serving-approver KUBECONFIG")
			os.Exit(2)
		}
		if err := approveServing(os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "kubectl":
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			kubectlutil.CheckErr(err)
		}
	default:
		component, known := components[role]
		if !known {
			fmt.Fprintf(os.Stderr, "no such role: %s (etcd, kubectl, serving-approver, kube-apiserver, kube-controller-manager, kube-scheduler, kube-proxy)\n", role)
			os.Exit(2)
		}
		os.Exit(cli.Run(component()))
	}
}
