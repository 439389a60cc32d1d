#!/usr/bin/env bash
# What `ray up cluster.yaml` needs of an AWS account, made once: cluster/aws_prepare.sh [REGION] [ADDRESS/BITS]
#
# Ray would make the same by itself, but with a security group that lets everybody knock at port 22, and with a role that
# may do everything in EC2 and S3. Here ssh is for ADDRESS/BITS only (your present address by default), and the head may
# do what its autoscaler does, to instances of this cluster. Running it again changes only the address.
set -euo pipefail
region=${1:-us-east-1}
from=${2:-$(curl -fsS https://checkip.amazonaws.com)/32}
cluster=morphling group=morphling-ray
aws=(aws --region "$region" --output text)

vpc=$("${aws[@]}" ec2 describe-vpcs --filters Name=is-default,Values=true --query 'Vpcs[0].VpcId')
find_group() {
    "${aws[@]}" ec2 describe-security-groups --query 'SecurityGroups[0].GroupId' \
        --filters "Name=group-name,Values=$group" "Name=vpc-id,Values=$vpc"
}
id=$(find_group)
if [ "$id" = None ]; then
    id=$("${aws[@]}" ec2 create-security-group --group-name $group --vpc-id "$vpc" \
        --description "morphling_ray: ssh from one address, everything between the nodes" --query GroupId)
    "${aws[@]}" ec2 authorize-security-group-ingress --group-id "$id" --protocol all --source-group "$id" >/dev/null
else
    "${aws[@]}" ec2 describe-security-group-rules --filters "Name=group-id,Values=$id" \
        --query 'SecurityGroupRules[?FromPort==`22`].SecurityGroupRuleId' | tr '\t' '\n' | while read -r rule; do
        [ -z "$rule" ] || "${aws[@]}" ec2 revoke-security-group-ingress --group-id "$id" --security-group-rule-ids "$rule" >/dev/null
    done
fi
"${aws[@]}" ec2 authorize-security-group-ingress --group-id "$id" --protocol tcp --port 22 --cidr "$from" >/dev/null

account=$("${aws[@]}" sts get-caller-identity --query Account)
trust='{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"},
  "Action": "sts:AssumeRole"}]}'
# Instances are started with the tag of the cluster, and only those may be changed or ended.
policy=$(cat <<JSON
{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Action": ["ec2:Describe*"], "Resource": "*"},
  {"Effect": "Allow", "Action": ["ec2:RunInstances"], "Resource": "*",
   "Condition": {"StringEquals": {"aws:RequestedRegion": "$region"}}},
  {"Effect": "Allow", "Action": ["ec2:CreateTags"], "Resource": "*",
   "Condition": {"StringEquals": {"ec2:CreateAction": "RunInstances"}}},
  {"Effect": "Allow", "Action": ["ec2:CreateTags", "ec2:DeleteTags", "ec2:TerminateInstances"], "Resource": "*",
   "Condition": {"StringEquals": {"aws:ResourceTag/ray-cluster-name": "$cluster"}}},
  {"Effect": "Allow", "Action": ["ssm:GetParameters"],
   "Resource": "arn:aws:ssm:$region::parameter/aws/service/deeplearning/ami/*"},
  {"Effect": "Allow", "Action": ["iam:PassRole"], "Resource": "arn:aws:iam::$account:role/morphling-ray-worker"}
]}
JSON
)
for role in morphling-ray-head morphling-ray-worker; do
    if ! "${aws[@]}" iam get-role --role-name $role >/dev/null 2>&1; then
        "${aws[@]}" iam create-role --role-name $role --assume-role-policy-document "$trust" >/dev/null
    fi
    if ! "${aws[@]}" iam get-instance-profile --instance-profile-name $role >/dev/null 2>&1; then
        "${aws[@]}" iam create-instance-profile --instance-profile-name $role >/dev/null
        "${aws[@]}" iam add-role-to-instance-profile --instance-profile-name $role --role-name $role
    fi
done
"${aws[@]}" iam put-role-policy --role-name morphling-ray-head --policy-name autoscaler --policy-document "$policy"
# Once for an account, and nobody's right but an administrator's; it is there already where spot was ever used.
"${aws[@]}" iam create-service-linked-role --aws-service-name spot.amazonaws.com >/dev/null 2>&1 || true
echo "ready: $group in $region lets $from log in"
