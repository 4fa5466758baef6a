{{- define "ichnode.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "ichnode.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ichnode.labels" -}}
{{ include "ichnode.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "ichnode.claim" -}}
{{ .Values.spool.existingClaim | default (printf "%s-spool" (include "ichnode.name" .)) }}
{{- end }}

{{/* A pod of one role: dict "root" $ "role" name "of" its values "env" list "ports" list "probe" dict "grace" s.
"keeps" true: with a bucket, a disk of its own, for what is not there yet. */}}
{{- define "ichnode.deployment" -}}
{{- $root := .root -}}
{{- $bucket := $root.Values.spool.bucket -}}
{{- $keeps := and $bucket (default false .keeps) -}}
apiVersion: apps/v1
kind: {{ $keeps | ternary "StatefulSet" "Deployment" }}
metadata:
  name: {{ include "ichnode.name" $root }}-{{ .role }}
  labels:
    {{- include "ichnode.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .role }}
spec:
  {{- if $keeps }}
  serviceName: {{ include "ichnode.name" $root }}-{{ .role }}
  podManagementPolicy: Parallel
  {{- end }}
  replicas: {{ .of.replicas }}
  selector:
    matchLabels:
      {{- include "ichnode.selector" $root | nindent 6 }}
      app.kubernetes.io/component: {{ .role }}
  template:
    metadata:
      labels:
        {{- include "ichnode.labels" $root | nindent 8 }}
        app.kubernetes.io/component: {{ .role }}
      annotations:
        checksum/settings: {{ $root.Values.settings | sha256sum }}
        {{- with $root.Values.podAnnotations }}{{ toYaml . | nindent 8 }}{{ end }}
    spec:
      automountServiceAccountToken: false
      # Kubernetes would set ICHNODE_…_PORT for services of this name, and the node takes ICHNODE_… for settings
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ .grace | default 20 }}
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        runAsGroup: 10001
        fsGroup: 10001
        fsGroupChangePolicy: OnRootMismatch
        seccompProfile: {type: RuntimeDefault}
      {{- with $root.Values.image.pullSecrets }}
      imagePullSecrets:
        {{- range . }}
        - name: {{ . }}
        {{- end }}
      {{- end }}
      {{- with .of.nodeSelector }}
      nodeSelector: {{ toYaml . | nindent 8 }}
      {{- end }}
      {{- with .of.tolerations }}
      tolerations: {{ toYaml . | nindent 8 }}
      {{- end }}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- include "ichnode.selector" $root | nindent 14 }}
              app.kubernetes.io/component: {{ .role }}
      containers:
        - name: {{ .role }}
          image: "{{ $root.Values.image.repository }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}"
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args: [{{ .role }}]
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
          env:
            - {name: ICHNODE_CONFIG, value: /etc/ichnode/ichnode.toml}
            {{- range .env }}
            - {{ toJson . }}
            {{- end }}
          envFrom:
            - secretRef: {name: {{ $root.Values.connectionSecret }}}
            {{- range $root.Values.extraSecrets }}
            - secretRef: {name: {{ . }}}
            {{- end }}
          {{- with .ports }}
          ports: {{ toYaml . | nindent 12 }}
          {{- end }}
          {{- with .probe }}
          startupProbe: {{ merge (dict "periodSeconds" 5 "failureThreshold" 30) . | toYaml | nindent 12 }}
          readinessProbe: {{ merge (dict "periodSeconds" 10) . | toYaml | nindent 12 }}
          livenessProbe: {{ merge (dict "periodSeconds" 20 "failureThreshold" 6 "timeoutSeconds" 5) . | toYaml | nindent 12 }}
          {{- end }}
          resources: {{ toYaml .of.resources | nindent 12 }}
          volumeMounts:
            - {name: spool, mountPath: /var/lib/ichnode}
            - {name: settings, mountPath: /etc/ichnode, readOnly: true}
            - {name: tmp, mountPath: /tmp}
      volumes:
        {{- if not $bucket }}
        - name: spool
          persistentVolumeClaim: {claimName: {{ include "ichnode.claim" $root }}}
        {{- else if not $keeps }}
        - name: spool
          emptyDir: {}
        {{- end }}
        - name: settings
          configMap: {name: {{ include "ichnode.name" $root }}}
        - name: tmp
          emptyDir: {}
  {{- if $keeps }}
  volumeClaimTemplates:  # kept when the chart goes: images may lie here alone
    - metadata:
        name: spool
        labels: {{- include "ichnode.selector" $root | nindent 10 }}
      spec:
        accessModes: [ReadWriteOnce]
        {{- with $root.Values.spool.storageClass }}
        storageClassName: {{ . }}
        {{- end }}
        resources:
          requests:
            storage: {{ $root.Values.spool.diskSize }}
  {{- end }}
{{- end }}
