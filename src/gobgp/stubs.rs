//! Procedures of each version: both services have the same ones, and all of them call [`Service`].

use tonic::{Request, Response, Status};

use super::service::{Many, Service, many};
use super::version::Version;
use super::watch::{self, Places};
use super::wire::messages::{
    AddPathRequest, AddPathResponse, AddPeerRequest, DeletePathRequest, DeletePeerRequest, DisablePeerRequest,
    EnablePeerRequest, GetBgpResponse, GetTableRequest, GetTableResponse, ListDefinedSetRequest,
    ListDefinedSetResponse, ListPathRequest, ListPathResponse, ListPeerRequest, ListPeerResponse,
    ListPolicyAssignmentRequest, ListPolicyAssignmentResponse, ListPolicyRequest, ListPolicyResponse,
    ListStatementRequest, ListStatementResponse, Nothing, ResetPeerRequest, ShutdownPeerRequest, WatchEventRequest,
    WatchEventResponse,
};
use super::wire::{api, apipb};
use crate::bgp::message::Reason;

/// The service of 3.x.
pub struct Three(pub Service, pub Places);

/// The service of 4.x.
pub struct Four(pub Service, pub Places);

type Answer<T> = Result<Response<T>, Status>;

macro_rules! serves {
    ($service:path, $who:ident, $version:expr) => {
        #[tonic::async_trait]
        impl $service for $who {
            type ListPeerStream = Many<ListPeerResponse>;
            type ListPathStream = Many<ListPathResponse>;
            type ListPolicyStream = Many<ListPolicyResponse>;
            type ListStatementStream = Many<ListStatementResponse>;
            type ListDefinedSetStream = Many<ListDefinedSetResponse>;
            type ListPolicyAssignmentStream = Many<ListPolicyAssignmentResponse>;
            type WatchEventStream = Many<WatchEventResponse>;
            type ListBmpStream = Many<Nothing>;
            type ListRpkiStream = Many<Nothing>;
            type ListRpkiTableStream = Many<Nothing>;
            type ListVrfStream = Many<Nothing>;

            async fn get_bgp(&self, _: Request<Nothing>) -> Answer<GetBgpResponse> {
                Ok(Response::new(self.0.bgp().await?))
            }

            async fn start_bgp(&self, _: Request<Nothing>) -> Answer<Nothing> {
                Err(self.0.refused("starting BGP"))
            }

            async fn stop_bgp(&self, _: Request<Nothing>) -> Answer<Nothing> {
                Err(self.0.refused("stopping BGP"))
            }

            async fn list_peer(&self, request: Request<ListPeerRequest>) -> Answer<Many<ListPeerResponse>> {
                Ok(Response::new(self.0.peers($version, request.into_inner()).await?))
            }

            async fn add_peer(&self, request: Request<AddPeerRequest>) -> Answer<Nothing> {
                Ok(Response::new(self.0.add_peer(request.into_inner().peer).await?))
            }

            async fn delete_peer(&self, request: Request<DeletePeerRequest>) -> Answer<Nothing> {
                Ok(Response::new(self.0.delete_peer(&request.into_inner().address).await?))
            }

            async fn reset_peer(&self, request: Request<ResetPeerRequest>) -> Answer<Nothing> {
                Ok(Response::new(self.0.reset($version, request.into_inner()).await?))
            }

            async fn shutdown_peer(&self, request: Request<ShutdownPeerRequest>) -> Answer<Nothing> {
                let ShutdownPeerRequest { address, communication } = request.into_inner();
                Ok(Response::new(self.0.end_sessions(&address, Reason::SHUTDOWN, &communication).await?))
            }

            async fn enable_peer(&self, request: Request<EnablePeerRequest>) -> Answer<Nothing> {
                Ok(Response::new(self.0.enable(&request.into_inner().address).await?))
            }

            async fn disable_peer(&self, request: Request<DisablePeerRequest>) -> Answer<Nothing> {
                let DisablePeerRequest { address, communication } = request.into_inner();
                Ok(Response::new(self.0.disable(&address, &communication).await?))
            }

            async fn list_path(&self, request: Request<ListPathRequest>) -> Answer<Many<ListPathResponse>> {
                Ok(Response::new(self.0.paths($version, request.into_inner()).await?))
            }

            async fn get_table(&self, request: Request<GetTableRequest>) -> Answer<GetTableResponse> {
                Ok(Response::new(self.0.table($version, request.into_inner()).await?))
            }

            async fn add_path(&self, request: Request<AddPathRequest>) -> Answer<AddPathResponse> {
                Ok(Response::new(self.0.add_path($version, request.into_inner()).await?))
            }

            async fn delete_path(&self, request: Request<DeletePathRequest>) -> Answer<Nothing> {
                Ok(Response::new(self.0.delete_path($version, request.into_inner()).await?))
            }

            async fn list_policy(&self, request: Request<ListPolicyRequest>) -> Answer<Many<ListPolicyResponse>> {
                Ok(Response::new(self.0.policies($version, &request.into_inner().name).await?))
            }

            async fn list_statement(
                &self,
                request: Request<ListStatementRequest>,
            ) -> Answer<Many<ListStatementResponse>> {
                Ok(Response::new(self.0.statements($version, &request.into_inner().name).await?))
            }

            async fn list_defined_set(
                &self,
                request: Request<ListDefinedSetRequest>,
            ) -> Answer<Many<ListDefinedSetResponse>> {
                let ListDefinedSetRequest { defined_type, name } = request.into_inner();
                Ok(Response::new(self.0.sets($version, defined_type, &name).await?))
            }

            async fn list_policy_assignment(
                &self,
                request: Request<ListPolicyAssignmentRequest>,
            ) -> Answer<Many<ListPolicyAssignmentResponse>> {
                let ListPolicyAssignmentRequest { name, direction } = request.into_inner();
                Ok(Response::new(self.0.assignments($version, &name, direction).await?))
            }

            async fn watch_event(&self, request: Request<WatchEventRequest>) -> Answer<Many<WatchEventResponse>> {
                Ok(Response::new(watch::watch(self.0.clone(), $version, &self.1, request.into_inner())?))
            }

            async fn list_bmp(&self, _: Request<Nothing>) -> Answer<Many<Nothing>> {
                Ok(Response::new(many(Vec::new())))
            }

            async fn list_rpki(&self, _: Request<Nothing>) -> Answer<Many<Nothing>> {
                Ok(Response::new(many(Vec::new())))
            }

            async fn list_rpki_table(&self, _: Request<Nothing>) -> Answer<Many<Nothing>> {
                Ok(Response::new(many(Vec::new())))
            }

            async fn list_vrf(&self, _: Request<Nothing>) -> Answer<Many<Nothing>> {
                Ok(Response::new(many(Vec::new())))
            }
        }
    };
}

serves!(apipb::gobgp_api_server::GobgpApi, Three, Version::V3);
serves!(api::go_bgp_service_server::GoBgpService, Four, Version::V4);
