{{- /* What several templates ask of the values. A name is true where it prints a word. */ -}}

{{- define "sluice.givesNetwork" -}}
{{- if and .Values.router.enabled .Values.router.podNetwork }}yes{{ end -}}
{{- end -}}

{{- /* A CNI file is written, or looked through for the plugin sluice-cni. */ -}}
{{- define "sluice.seesCNIFiles" -}}
{{- if or (include "sluice.givesNetwork" .) .Values.firewall.enabled }}yes{{ end -}}
{{- end -}}

{{- /* Pods that get their network from another plugin are held back by sluice-cni all the same. */ -}}
{{- define "sluice.installsPlugins" -}}
{{- if and .Values.cni.installPlugins (or (include "sluice.givesNetwork" .) .Values.firewall.holdPods) }}yes{{ end -}}
{{- end -}}

{{- /* Values that announce nothing: addresses of a kind of which no range is named, by a value or by a flag in extraArgs, count nowhere. */ -}}
{{- define "sluice.announcesNothing" -}}
{{- $flags := join " " .Values.extraArgs -}}
{{- $advertise := .Values.router.advertise -}}
{{- if and .Values.router.enabled (not (regexMatch "--strict-external-ip-validation=(0|f|F|FALSE|false|False)( |$)" $flags)) -}}
{{- if and $advertise.externalIP (not .Values.serviceExternalIPRanges) (not (contains "--service-external-ip-range" $flags)) }}
router.advertise.externalIP announces nothing: external IPs are announced only in ranges, and serviceExternalIPRanges names none.
{{- end -}}
{{- if and $advertise.loadBalancerIP (not .Values.loadBalancer.ranges) (not (contains "--loadbalancer-ip-range" $flags)) }}
router.advertise.loadBalancerIP announces nothing: addresses of load balancers are announced only in ranges, and loadBalancer.ranges names none.
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "sluice.image" -}}
{{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
{{- end -}}

{{- /* Words of a list in brackets, without the empty ones. */ -}}
{{- define "sluice.list" -}}
[{{ without . "" | join ", " }}]
{{- end -}}

{{- /* A number as it was typed: Helm reads large ones as floating point. A word stays as it is. */ -}}
{{- define "sluice.number" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ int64 . }}{{ end -}}
{{- end -}}
