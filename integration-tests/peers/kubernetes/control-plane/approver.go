package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	certificates "k8s.io/api/certificates/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// approveServing approves the serving certificates that nodes ask for, which no controller of Kubernetes does. A
// node may ask for its own name alone; the signer checks the rest.
func approveServing(kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", kubeconfig, err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("cannot make a client of %s: %w", kubeconfig, err)
	}
	approve := func(object any) {
		request, ok := object.(*certificates.CertificateSigningRequest)
		if !ok || request.Spec.SignerName != certificates.KubeletServingSignerName || len(request.Status.Conditions) > 0 {
			return
		}
		if !strings.HasPrefix(request.Spec.Username, "system:node:") {
			return
		}
		approved := request.DeepCopy()
		approved.Status.Conditions = append(approved.Status.Conditions, certificates.CertificateSigningRequestCondition{
			Type:    certificates.CertificateApproved,
			Status:  core.ConditionTrue,
			Reason:  "NodeOfTheTest",
			Message: "The test's cluster approves its own nodes.",
		})
		requests := client.CertificatesV1().CertificateSigningRequests()
		if _, err := requests.UpdateApproval(context.Background(), approved.Name, approved, meta.UpdateOptions{}); err != nil {
			fmt.Fprintf(os.Stderr, "cannot approve %s of %s: %v\n", approved.Name, approved.Spec.Username, err)
		}
	}
	// The resync asks again for what failed.
	factory := informers.NewSharedInformerFactory(client, 10_000_000_000)
	informer := factory.Certificates().V1().CertificateSigningRequests().Informer()
	handler := cache.ResourceEventHandlerFuncs{AddFunc: approve, UpdateFunc: func(_, object any) { approve(object) }}
	if _, err := informer.AddEventHandler(handler); err != nil {
		return fmt.Errorf("cannot watch certificate requests: %w", err)
	}
	informer.Run(context.Background().Done())
	return nil
}
